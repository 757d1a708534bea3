#!/bin/sh
# Options or a configuration file alone mean redis-server; a server never runs as root.
set -eu

case ${1-} in
'' | -* | *.conf) set -- redis-server "$@" ;;
esac
if [ "$1" = redis-server ]; then
    umask 0077
    if [ "$(id -u)" = 0 ]; then
        find . ! -user redis -exec chown redis '{}' +
        exec setpriv --reuid=redis --regid=redis --init-groups "$0" "$@"
    fi
fi
exec "$@"
