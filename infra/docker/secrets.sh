#!/bin/sh
# Writes .env for docker-compose.yml, with passwords of its own, for the owner's eyes alone. Into one that is there it
# writes what a newer version needs beside, and changes nothing else.
set -eu
cd "$(dirname "$0")/../.."
file=${1:-.env}

random() {
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

umask 077
touch "$file"
chmod 600 "$file"
# Whoever wrote it may have left its last line open.
[ -z "$(tail -c 1 "$file")" ] || echo >> "$file"
if ! grep -q '^COMPOSE_PROFILES=' "$file"; then
  cat >> "$file" <<EOF
# The judge of a plain \`docker compose up\`; \`--profile gpu\` takes its place.
COMPOSE_PROFILES=cpu
EOF
fi
for name in POSTGRES API DISPATCHER WORKER CALLBACKS REDIS REDIS_SERVICE; do
  grep -q "^${name}_PASSWORD=" "$file" || echo "${name}_PASSWORD=$(random)" >> "$file"
done
# What callback secrets are sealed by in the database: without it they are lost.
grep -q "^SECRET_KEYS=" "$file" || echo "SECRET_KEYS=$(random)" >> "$file"
echo "$file is written: keep it as you keep passwords"
