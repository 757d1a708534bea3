#!/bin/bash
# The service "certificates": with HTTPS=acme it gets the site's certificate and renews it in time,
# by dehydrated (https://dehydrated.io). nginx sees the new one at the next handshake.
set -u

# An account and certificates for each authority, so that one can change and come back.
state=/srv/acme/${ACME_DIRECTORY//[^a-z0-9.-]/_}

if [ "${1-}" = health ]; then
    # Renewal begins 32 days before the end. That it still failed a week before is for a person.
    [ "$HTTPS" != acme ] || [ ! -e "$state/certs/site/cert.pem" ] ||
        openssl x509 -in "$state/certs/site/cert.pem" -noout -checkend $((7 * 24 * 3600))
    exit
fi

idle() {
    echo "$1"
    exec sleep infinity
}

[ "$HTTPS" = acme ] || idle "HTTPS is $HTTPS: there is no certificate to get."
IFS=", " read -ra given <<<"$HTTPS_NAMES"
names=()
for name in "${given[@]}"; do
    case ${name#.} in
    *[!A-Za-z0-9.-]* | *[0-9] | localhost) ;; # no wildcard, no address
    *.*) names+=("${name#.}") ;;
    esac
done
[ -n "${names[*]-}" ] || idle "No public name is in ALLOWED_HOSTS or HTTPS_NAMES: no certificate."

umask 077
mkdir -p "$state" /srv/certificates/challenges
# The key stays the same, so that a handshake during a renewal finds key and certificate that fit.
cat >/tmp/config <<END
BASEDIR=$state
CA=$(printf %q "$ACME_DIRECTORY")
CONTACT_EMAIL=$(printf %q "$ACME_EMAIL")
WELLKNOWN=/srv/certificates/challenges
KEY_ALGO=prime256v1
PRIVATE_KEY_RENEW=no
END

acme() {
    timeout 10m dehydrated --config /tmp/config --no-lock "$@" # a power cut leaves locks
}

# Gets what is due and puts it into use. 1: the authority cannot be reached; 2: it refuses.
renew() {
    # What an interruption left of an account would be in the way of a whole one.
    [ -n "$(find "$state/accounts" -name registration_info.json -size +0 2>/dev/null)" ] ||
        rm -rf "$state/accounts"
    acme --register --accept-terms || return 1
    acme --cron --alias site --domain "${names[*]}" || return 2
    cat "$state/certs/site/privkey.pem" "$state/certs/site/fullchain.pem" >/tmp/site.pem
    cmp -s /tmp/site.pem /srv/certificates/site.pem ||
        sh /etc/nginx/put-certificate.sh </tmp/site.pem || return 2
}

away=1 refused=15 # minutes until the next attempt, doubled each time
while true; do
    renew
    case $? in
    0)
        away=1 refused=15 minutes=$((12 * 60))
        ;;
    1)
        minutes=$away away=$((away < 60 ? away * 2 : 60))
        echo "$ACME_DIRECTORY cannot be used, see above; the next attempt is in $minutes minutes." >&2
        ;;
    *) # Let's Encrypt allows five an hour: https://letsencrypt.org/docs/rate-limits/
        minutes=$refused refused=$((refused < 720 ? refused * 2 : 720))
        echo "No certificate for ${names[*]}, see above; the next attempt is in $minutes minutes." >&2
        ;;
    esac
    sleep "${minutes}m"
done
