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
        cargo test --package retort-worker --lib the_encoder_agrees -- --ignored --nocapture

# Compare every architecture, and what is exported from it, with transformers and sentence-transformers.
parity-models: parity-setup
    {{ venv }}/bin/python tests/parity/models.py write target/parity/models
    RETORT_MODELS="$PWD/target/parity/models" \
        cargo test --package retort-worker --lib architectures -- --ignored --nocapture
    {{ venv }}/bin/python tests/parity/models.py check target/parity/models

# Compare the metrics with ir_measures on random runs.
parity-metrics: parity-setup
    mkdir -p target/parity/metrics
    {{ venv }}/bin/python tests/parity/metrics.py random target/parity/metrics 50
    RETORT_METRICS_PARITY="$PWD/target/parity/metrics" \
        cargo test --package retort-worker random_values_equal_ir_measures -- --ignored

# Search, quantisers and BM25 against faiss and bm25s: the same results, on VECTORS.npy and QUERIES.npy or synthetic ones.
parity-search *VECTORS: parity-setup
    cargo build --release --package retort-worker --example search_peer
    {{ venv }}/bin/python tests/parity/search.py parity target/release/examples/search_peer {{ VECTORS }}

# Search, quantisers and BM25 beside faiss and bm25s, alternating, two threads each.
bench-search *ARGS: parity-setup
    cargo build --release --package retort-worker --example search_peer
    {{ venv }}/bin/python tests/parity/search.py bench target/release/examples/search_peer {{ ARGS }}

# Shard a synthetic psgs_w100.tsv of 5 million lines (3.4 GB under FOLDER): megabytes a second and peak memory.
bench-shard LINES="5000000" THREADS="2" FOLDER="/tmp":
    cargo bench --package retort-worker --bench shard -- {{ LINES }} {{ THREADS }} {{ FOLDER }}

# Peak memory of the tasks over a whole corpus, for a corpus and for one ten times as large, with the same questions.
bench-corpus-memory PASSAGES="20000" QUESTIONS="10000" FOLDER="/tmp":
    cargo bench --package retort-worker --bench memory -- {{ PASSAGES }} {{ QUESTIONS }} {{ FOLDER }}
    cargo bench --package retort-worker --bench memory -- {{ PASSAGES }}0 {{ QUESTIONS }} {{ FOLDER }}

# Peak memory of each process of a whole job, over its corpus and over one ten times as large.
bench-job-memory SPEC="examples/quickstart.toml" *ARGS:
    cargo build --release
    python3 tests/bench/memory.py --retort target/release/retort --spec {{ SPEC }} {{ ARGS }}

# The same job on flex and LibTorch: embeddings within 1e-4, metrics within 0.002, the same bits with one worker and two.
parity-backends LIBTORCH: parity-setup
    LIBTORCH={{ LIBTORCH }} cargo build --release --package retort-cli --features tch
    {{ venv }}/bin/python tests/parity/backends.py --retort target/release/retort

# Passages per second beside sentence-transformers, alternating, two threads each: just bench-embed /models/all-MiniLM-L6-v2 /data/wiki
bench-embed MODEL CORPUS *ARGS: parity-setup
    cargo build --release --package retort-worker --example encoder_peer
    {{ venv }}/bin/python tests/bench/encoder.py embed --model {{ MODEL }} --corpus {{ CORPUS }} {{ ARGS }}

# Passages per second of an exported encoder beside its teacher's, alternating, two threads each.
bench-student TEACHER STUDENT CORPUS *ARGS:
    cargo build --release --package retort-worker --example encoder_peer
    python3 tests/bench/encoder.py student --model {{ TEACHER }} --student {{ STUDENT }} --corpus {{ CORPUS }} {{ ARGS }}

# Texts per second of an encoder student's training steps beside a plain PyTorch loop, two threads each.
bench-train MODEL CORPUS *ARGS: parity-setup
    cargo build --release --package retort-worker --example encoder_peer
    {{ venv }}/bin/python tests/bench/encoder.py train --model {{ MODEL }} --corpus {{ CORPUS }} {{ ARGS }}

# Fuzz every reader for some seconds each; needs cargo-fuzz and a nightly compiler. Versions are those of the workspace.
fuzz SECONDS="60":
    cp Cargo.lock fuzz/Cargo.lock
    cargo +nightly fuzz build --fuzz-dir fuzz
    for target in $(cargo +nightly fuzz list --fuzz-dir fuzz); do \
        cargo +nightly fuzz run --fuzz-dir fuzz $target -- -max_total_time={{ SECONDS }} -rss_limit_mb=2048; \
    done

# LibTorch for the `tch` feature, CPU only; with `cuda` as second argument for GPUs too.
libtorch FOLDER *KIND:
    deploy/libtorch.sh {{ FOLDER }} {{ KIND }}

# Check the Kubernetes manifests.
manifests:
    test -x {{ venv }}/bin/kubernetes-validate || { python3 -m venv {{ venv }} && {{ venv }}/bin/pip install --quiet kubernetes-validate; }
    {{ venv }}/bin/kubernetes-validate --strict $(ls deploy/kubernetes/*.yaml | grep --invert-match kustomization)

# The exchange between workers beside PyTorch's gloo: 100 MB of f32, separate processes, median of ten.
bench-exchange: parity-setup
    RETORT_BENCH_PYTHON={{ venv }}/bin/python cargo bench --package retort-worker --bench exchange

# What a step of four workers costs beyond 200 ms of (simulated) computing a microbatch: 1 to 16 microbatches a worker.
bench-overhead:
    cargo bench --package retort-worker --bench overhead

# What 64 microbatches cost in memory beside 8 of the same size, and what they may cost.
bench-memory:
    cargo test --package retort-worker --lib -- --ignored --exact --nocapture \
        tasks::train::memory::more_microbatches_cost_little

# One training on one to four workers, with even deals and uneven ones: one SHA-256.
cohort:
    cargo test --package retort-cli --test e2e any_cluster_gives -- --ignored --nocapture

# A training under 30 faults that the seed chooses; its weights and metrics must be those of an undisturbed one.
chaos SEED="1":
    RETORT_CHAOS_SEED={{ SEED }} cargo test --package retort-cli --test e2e many_faults -- --ignored --nocapture

# Jobs on a store of a few hundred KiB that fills up; needs Linux with user namespaces (or root), and some minutes, since a
# journal that cannot be written is tried again for two minutes.
full-store:
    cargo test --package retort-cli --test e2e full_store -- --ignored --nocapture

# How soon two of three workers go on after the third was killed.
recovery:
    cargo test --package retort-cli --test e2e two_of_three_workers -- --ignored --nocapture

# What CI runs.
ci:
    .ci/run
