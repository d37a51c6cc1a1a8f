//! Gives the library the driver's name, so that a program which asks the dynamic loader for `libcuda.so.1` once this
//! is loaded gets it too.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    }
}
