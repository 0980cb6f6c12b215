#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mainstay_fuzz::run("fence_file", bytes));
