#!/bin/sh
# Writes .env for docker-compose.yml, with passwords of its own, for the owner's eyes alone. Never writes over one.
set -eu
cd "$(dirname "$0")/../.."
file=${1:-.env}

if [ -e "$file" ]; then
  echo "$file is there already: it stays as it is" >&2
  exit 1
fi

password() {
  od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

umask 077
cat > "$file" <<EOF
# The judge of a plain \`docker compose up\`; \`--profile gpu\` takes its place.
COMPOSE_PROFILES=cpu
POSTGRES_PASSWORD=$(password)
REDIS_PASSWORD=$(password)
EOF
echo "$file is written: keep it as you keep passwords"
