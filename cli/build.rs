//! With the `tch` feature the binary looks for LibTorch where it was at build time and beside itself, so that it runs without
//! LD_LIBRARY_PATH as long as one of them holds.

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-changed=build.rs");
    let (Some(_), Some(folder)) = (std::env::var_os("CARGO_FEATURE_TCH"), std::env::var_os("LIBTORCH"))
    else {
        return;
    };
    let library = std::path::Path::new(&folder).join("lib");
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{}:$ORIGIN/libtorch/lib", library.display());
}
