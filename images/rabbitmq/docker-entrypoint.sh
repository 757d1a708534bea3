#!/bin/sh
# A broker never runs as root. RABBITMQ_DEFAULT_USER and the like are read by RabbitMQ itself.
set -eu

case $1 in
rabbitmq*)
    if [ "$(id -u)" = 0 ]; then
        find /var/lib/rabbitmq ! -user rabbitmq -exec chown rabbitmq '{}' +
        exec setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups "$0" "$@"
    fi
    ;;
esac
exec "$@"
