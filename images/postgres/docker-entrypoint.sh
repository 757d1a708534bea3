#!/bin/bash
# Make the cluster on an empty volume, as POSTGRES_* say, then run the server.
set -Eeuo pipefail

# from_file NAME DEFAULT: NAME from the environment, or from the file that NAME_FILE names.
from_file() {
    local file=${1}_FILE
    if [ -n "${!1-}" ] && [ -n "${!file-}" ]; then
        echo "$1 and $file are both set: set one of them." >&2
        exit 1
    fi
    if [ -n "${!file-}" ]; then
        cat "${!file}"
    else
        echo "${!1:-$2}"
    fi
}

# query ARGUMENTS: psql on the private socket, stopping at the first error.
query() {
    psql --no-psqlrc --no-password --quiet --set=ON_ERROR_STOP=1 --host="$PWD" \
        --username="$user" "$@"
}

initialise() {
    local user password database method=scram-sha-256 script
    user=$(from_file POSTGRES_USER postgres)
    password=$(from_file POSTGRES_PASSWORD '')
    database=$(from_file POSTGRES_DB "$user")
    method=${POSTGRES_HOST_AUTH_METHOD:-$method}
    if [ -z "$password" ] && [ "$method" != trust ]; then
        echo "POSTGRES_PASSWORD must not be empty when a database is made." >&2
        exit 1
    fi

    # shellcheck disable=SC2086  # several options in one variable, as in the official image
    initdb --username="$user" --pwfile=<(printf '%s\n' "$password") ${POSTGRES_INITDB_ARGS-}
    printf 'host all all all %s\n' "$method" >> "$PGDATA/pg_hba.conf"

    # Nothing but a private socket until everything is in place: a health check over the
    # network, or on the usual socket, must not see a half-made database.
    cd "$(mktemp -d)"
    pg_ctl --wait --pgdata="$PGDATA" \
        --options="-c listen_addresses='' -c unix_socket_directories='$PWD'" start
    if [ "$database" != postgres ]; then
        query --dbname=postgres --set=name="$database" <<< 'CREATE DATABASE :"name";'
    fi
    for script in /docker-entrypoint-initdb.d/*; do
        case $script in
        *.sh) PGHOST=$PWD PGUSER=$user PGDATABASE=$database bash "$script" ;;
        *.sql) query --dbname="$database" --file="$script" ;;
        *.sql.gz) gunzip --stdout "$script" | query --dbname="$database" ;;
        esac
    done
    pg_ctl --wait --pgdata="$PGDATA" --mode=fast stop
    cd / && rm -rf "$OLDPWD"
}

if [ "${1-}" = '' ] || [ "${1:0:1}" = - ]; then
    set -- postgres "$@"
fi
if [ "$1" = postgres ]; then
    if [ "$(id -u)" = 0 ]; then
        install -d -o postgres -g postgres -m 700 "$PGDATA"
        find "$PGDATA" ! -user postgres -exec chown postgres '{}' +
        exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
    fi
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        # The password method of the local socket is "trust", as in the official image.
        initialise
    fi
fi
exec "$@"
