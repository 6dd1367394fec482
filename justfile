# Recipes are plain cargo and shell lines: without `just`, type what stands in them.

set shell := ["bash", "-euo", "pipefail", "-c"]

# Where the Python oracles live.
venv := ".venv"

# Show the recipes.
default:
    @just --list

# Every test, end to end ones included.
test *ARGS:
    cargo test {{ ARGS }}

# Formatting and clippy, as CI demands them.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Licences, bans and sources of the dependencies; `just advisories` looks for known holes.
deny:
    cargo deny --locked check licenses bans sources

# Known holes in dependencies; fetches the advisory database.
advisories:
    cargo deny --locked check advisories

# Distil the teacher that the repository carries, on this machine.
quickstart *ARGS:
    cargo run --release -- run examples/quickstart.toml {{ ARGS }}

# The full-size job: just wiki /data/wiki /models/all-MiniLM-L6-v2
wiki CORPUS TEACHER *ARGS:
    cargo run --release -- run examples/wiki.toml --set corpus.path={{ CORPUS }} --set teacher.model={{ TEACHER }} {{ ARGS }}

# Make the virtual environment with the Python oracles (Python 3.11).
parity-setup:
    test -x {{ venv }}/bin/python || tests/parity/setup.sh {{ venv }}

# Compare with the Python oracles; MODEL is a folder of all-MiniLM-L6-v2.
parity MODEL: parity-setup parity-metrics
    {{ venv }}/bin/python tests/parity/encoder.py --model {{ MODEL }} --out target/parity/encoder.json
    RETORT_MINILM={{ MODEL }} RETORT_PARITY="$PWD/target/parity/encoder.json" \
        cargo test --package retort-worker --lib parity -- --ignored --nocapture

# Compare the metrics with ir_measures on random runs.
parity-metrics: parity-setup
    mkdir -p target/parity/metrics
    {{ venv }}/bin/python tests/parity/metrics.py random target/parity/metrics 50
    RETORT_METRICS_PARITY="$PWD/target/parity/metrics" \
        cargo test --package retort-worker random_values_equal_ir_measures -- --ignored

# Check the Kubernetes manifests.
manifests:
    test -x {{ venv }}/bin/kubernetes-validate || { python3 -m venv {{ venv }} && {{ venv }}/bin/pip install --quiet kubernetes-validate; }
    {{ venv }}/bin/kubernetes-validate --strict $(ls deploy/kubernetes/*.yaml | grep --invert-match kustomization)

# The exchange between workers beside PyTorch's gloo: 100 MB of f32, separate processes, median of ten.
bench-exchange: parity-setup
    RETORT_BENCH_PYTHON={{ venv }}/bin/python cargo bench --package retort-worker --bench exchange

# What CI runs.
ci:
    .ci/run
