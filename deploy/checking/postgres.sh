# Begins as the published image of PostgreSQL does: with a cluster, a user and a database.
set -e
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  printf %s "$POSTGRES_PASSWORD" > /tmp/password
  initdb --username "$POSTGRES_USER" --pwfile /tmp/password --auth scram-sha-256 > /dev/null
  echo "CREATE DATABASE $POSTGRES_DB" | postgres --single postgres
  rm /tmp/password
fi
exec postgres -c unix_socket_directories=/tmp
