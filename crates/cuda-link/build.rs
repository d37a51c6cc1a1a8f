//! Tells the linker where the empty `libcuda.a` of this crate lies.
//!
//! `cust_raw` asks for a library named `cuda`. The symbols themselves are those of this crate, so any file of that
//! name will do; on a machine with a toolkit the linker may take the toolkit's instead, and leaves it unused.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(directory) = std::env::var("CARGO_MANIFEST_DIR") {
        println!("cargo:rustc-link-search=native={directory}/root/lib64");
    }
}
