#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    retort_fuzz::read(None, bytes);
});
