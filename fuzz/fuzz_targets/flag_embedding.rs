#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    retort_fuzz::read(Some(retort_common::spec::FileFormat::FlagEmbedding), bytes);
});
