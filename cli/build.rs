//! Puts the admission policies of `deploy/policies/` into the binary: `whet site up` needs no checkout.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policies");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<PathBuf> = match std::fs::read_dir(&folder) {
        Ok(items) => items.map(|item| item.map(|item| item.path())).collect::<Result<_, _>>()?,
        Err(_) => Vec::new(),
    };
    files.retain(|file| file.extension().is_some_and(|ending| ending == "yaml"));
    files.sort();
    let mut text = String::from("/// The files of `deploy/policies/`.\npub const POLICIES: &[&str] = &[\n");
    for file in files {
        println!("cargo::rerun-if-changed={}", file.display());
        writeln!(text, "    include_str!({:?}),", file.canonicalize()?)?;
    }
    text.push_str("];\n");
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("policies.rs"), text)?;
    Ok(())
}
