# Holds the static binary and nothing else: `make image` builds both.
FROM scratch
COPY --chown=65532:65532 bin/image/ /
USER 65532:65532
ENTRYPOINT ["/conclave"]
CMD ["server"]
