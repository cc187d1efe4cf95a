# Stands for the published images of PostgreSQL and Prometheus where only an engine could fetch them.
ARG BASE
FROM ${BASE} AS services
RUN printf 'exit 101' > /usr/sbin/policy-rc.d && apt-get update && \
    DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --no-install-recommends postgresql prometheus && \
    install --directory --owner postgres --mode 700 /var/lib/postgresql/data && \
    install --directory --owner prometheus /prometheus
ENV PGDATA=/var/lib/postgresql/data
COPY deploy/checking/postgres.sh /postgres.sh
