#![no_main]

#[path = "../checks/parcel.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::run(bytes));
