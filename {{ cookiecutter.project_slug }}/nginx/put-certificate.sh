#!/bin/sh
# Takes a private key and its certificate chain, as PEM from standard input, into use.
set -eu
file=/srv/certificates/site.pem

new=$(mktemp "$file.XXXXXX") # for this user alone
trap 'rm -f "$new"' EXIT
cat >"$new"
key=$(openssl pkey -in "$new" -passin pass: -pubout 2>/dev/null) || key=
if [ -z "$key" ] || [ "$key" != "$(openssl x509 -in "$new" -noout -pubkey 2>/dev/null)" ]; then
    echo "Refused: give a private key without a password and its chain, the site's own certificate" \
        "first, as PEM." >&2
    exit 1
fi
sync "$new" # all of it is on the disk before it counts
mv "$new" "$file"
