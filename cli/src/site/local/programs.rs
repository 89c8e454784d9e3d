//! The programs that a site consists of. They are found, never linked: a simulator has no place in `whet`.

use std::path::{Path, PathBuf};

use crate::input_error;

/// Where they are.
pub struct Programs {
    pub operator: PathBuf,
    pub agent: PathBuf,
    pub sim: PathBuf,
    /// The simulated libraries.
    pub libraries: PathBuf,
    /// `None` where a cluster is given.
    pub local: Option<PathBuf>,
}

/// How a program that is missing is had.
const HOW: &str = "`make build` makes it; or say where it is with --bin DIR";

/// Where programs are looked for, in this order.
fn places(bin: Option<&Path>) -> Vec<PathBuf> {
    let own = std::env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned));
    let mut places: Vec<PathBuf> = bin.map(Path::to_owned).into_iter().collect();
    if let Some(own) = own {
        // Built: target/debug beside target/local/bin.
        places.extend([own.clone(), own.join("../local/bin")]);
    }
    if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path).filter(|place| place.is_absolute()));
    }
    places
}

fn find(name: &str, places: &[PathBuf]) -> anyhow::Result<PathBuf> {
    let found = places.iter().map(|place| place.join(name)).find(|path| is_program(path));
    let found = found.and_then(|path| tidy(&path));
    found.ok_or_else(|| input_error(format!("the program {name} is missing: {HOW}")))
}

/// An absolute path without `..`. The program itself may be a link whose name decides what it is.
fn tidy(path: &Path) -> Option<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(folder.canonicalize().ok()?.join(path.file_name()?))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

impl Programs {
    /// `libraries`: folder with the simulated `libnvidia-ml.so.1` and `libcuda.so.1`.
    pub fn find(bin: Option<&Path>, libraries: Option<&Path>, own_cluster: bool) -> anyhow::Result<Programs> {
        let places = places(bin);
        let sim = find("whet-sim", &places)?;
        let beside = [places.as_slice(), sim.parent().map(Path::to_owned).as_slice()].concat();
        let mut candidates: Vec<PathBuf> = libraries.map(Path::to_owned).into_iter().collect();
        if libraries.is_none() {
            candidates.extend(beside.iter().flat_map(|place| [place.join("sim"), place.join("../sim")]));
        }
        let has_all = |place: &&PathBuf| {
            place.join("libnvidia-ml.so.1").is_file() && place.join("libcuda.so.1").is_file()
        };
        let found = candidates.iter().find(has_all).and_then(|path| tidy(path));
        let libraries = found.ok_or_else(|| {
            input_error(
                "the simulated libraries (libnvidia-ml.so.1, libcuda.so.1) are missing: `whet-sim libs --dir DIR` makes them; \
                 then say where with --sim-libs DIR",
            )
        })?;
        Ok(Programs {
            operator: find("whetstone-operator", &places)?,
            agent: find("whetstone-agent", &places)?,
            local: own_cluster.then(|| find("whet-local", &places)).transpose()?,
            sim,
            libraries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_is_named_with_how_to_get_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("whet-x"), "not executable").unwrap();
        let error = find("whet-x", &[dir.path().to_owned()]).unwrap_err();
        assert!(error.is::<crate::InputError>(), "{error}");
        assert!(error.to_string().contains("whet-x") && error.to_string().contains("make build"), "{error}");
        assert_eq!(find("sh", &places(None)).unwrap().file_name().unwrap(), "sh");
    }
}
