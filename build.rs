//! Tells the program whether it was built with frame pointers: RUSTFLAGS in the environment, and
//! `cargo install` from elsewhere, leave .cargo/config.toml out, and stacks are cut short then.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    println!("cargo::rustc-check-cfg=cfg(frame_pointers)");
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let wanted = ["force-frame-pointers=yes", "force-frame-pointers=non-leaf"];
    if flags.split('\x1f').any(|flag| wanted.iter().any(|wanted| flag.ends_with(wanted))) {
        println!("cargo::rustc-cfg=frame_pointers");
    }
}
