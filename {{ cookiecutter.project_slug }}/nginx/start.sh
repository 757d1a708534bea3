#!/bin/sh
# The proxy's entry point: write settings of .env into nginx's configuration, then start nginx, with the
# options that it gets. "start.sh reload" loads a changed configuration into the nginx that runs.
set -eu

# In production the project's folder nginx/ is mounted, so that a deploy need not replace the container.
folder=/srv/nginx
[ -d $folder ] || folder=/etc/nginx
if ! configuration=$(cat $folder/*.conf $folder/locations/*); then
    echo "The proxy, user 101, cannot read the folder nginx/: run chmod -R a+rX nginx" >&2
    exit 1
fi
if [ "${1-}" = reload ]; then
    [ "$configuration" != "$(cat /tmp/loaded)" ] || exit 0
    set -- -s reload
fi

case ${HTTPS:=false} in
acme | files) servers=tls ;;
balancer | false) servers=plain ;;
*)
    echo "HTTPS in .env is \"$HTTPS\"; make it acme, files, balancer or false." >&2
    exit 1
    ;;
esac
ln -sf "$folder/$servers.conf" /tmp/servers.conf

port=${HTTPS_PORT:-443}
port=:${port##*:} # it may name an address, too
proxies=
if [ "$HTTPS" = balancer ]; then
    proxies=$(echo "${TRUSTED_PROXIES-}" | tr , ' ')
    if [ -z "$proxies" ]; then
        echo "HTTPS in .env is balancer; name the balancer's addresses in TRUSTED_PROXIES." >&2
        exit 1
    fi
fi
# The engine's DNS: 127.0.0.11 in Docker, the gateway of a network in Podman.
while read -r word resolver _; do [ "$word" != nameserver ] || break; done </etc/resolv.conf
case $resolver in *:*) resolver="[$resolver]" ;; esac

# For all responses over TLS, those of Flower and of files included; Django sends none.
hsts=${HSTS-max-age=31536000; includeSubDomains}

{
    echo "client_max_body_size ${MAX_BODY:-1m};"
    echo "map \$client_scheme \$hsts { https \"$hsts\"; default \"\"; }"
    echo "resolver ${resolver:-127.0.0.11} valid=1s ipv6=off;"
    echo "geo \$https_port { default \"${port%:443}\"; }"
    echo "geo \$realip_remote_addr \$trusted { default 0;"
    for proxy in $proxies; do echo "$proxy 1;"; done
    echo "}"
    for proxy in $proxies; do echo "set_real_ip_from $proxy;"; done
} >/tmp/env.conf

for path in $(echo "${UPLOAD_PATHS-/admin/}" | tr , ' '); do
    case $path in
    /?*) ;;
    *)
        echo "UPLOAD_PATHS in .env has \"$path\"; name paths like /admin/. For all paths there is MAX_BODY." >&2
        exit 1
        ;;
    esac
    echo "location $path { client_max_body_size ${MAX_UPLOAD:-20m}; include upload.conf; }"
done >/tmp/uploads.conf

# A handshake needs some certificate, and the first real one needs a proxy that runs.
if [ $servers = tls ] && [ ! -e /srv/certificates/site.pem ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 3650 \
        -subj "/CN=No certificate yet" -keyout - 2>/dev/null |
        sh /etc/nginx/put-certificate.sh || echo "No self-signed certificate, see above." >&2
fi

nginx -p $folder -c nginx.conf -t -q
printf '%s\n' "$configuration" >/tmp/loaded
exec nginx -p $folder -c nginx.conf -g "daemon off;" "$@"
