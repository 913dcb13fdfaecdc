#![no_main]

#[path = "../checks/client_address.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::run(bytes));
