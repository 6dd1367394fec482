//! Where the `tch` feature finds LibTorch, said clearly before the compiler of torch-sys says it; and which version it is.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_TCH").is_none() {
        return;
    }
    let Some(folder) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        println!("cargo::error=the tch feature needs LIBTORCH, the folder that deploy/libtorch.sh makes");
        return;
    };
    let version = folder.join("torch-version");
    println!("cargo::rerun-if-changed={}", version.display());
    if cfg!(target_os = "linux") && !folder.join("lib/libtorch_cpu.so").exists() {
        let folder = folder.display();
        println!(
            "cargo::error={folder}/lib/libtorch_cpu.so is not there: LIBTORCH must name a folder made by deploy/libtorch.sh"
        );
        return;
    }
    let version = std::fs::read_to_string(version).unwrap_or_default();
    let version = version.trim();
    println!(
        "cargo::rustc-env=RETORT_LIBTORCH_VERSION={}",
        if version.is_empty() { "of unknown version" } else { version }
    );
}
