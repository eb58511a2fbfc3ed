#!/bin/sh
# Copy .env.example to docker/.env, or to FILE, with a database password of its own. A file that is there stays.
#   docker/init-env.sh [FILE]
set -eu
here=$(dirname "$0")
file=${1:-$here/.env}
if [ -e "$file" ]; then
    echo "$file is there already, and stays as it is."
    exit
fi
umask 077
password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
sed "s/^POSTGRES_PASSWORD=.*/POSTGRES_PASSWORD=$password/" "$here/.env.example" > "$file"
echo "Made $file"
