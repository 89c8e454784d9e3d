//! The habits of the workspace: pure crates stay pure, dependencies point one way, licences are allowed ones,
//! `unsafe` stays where it belongs, versions stand in one place, nothing of one machine gets in.
//!
//! Hermetic: `cargo metadata --offline` and the files themselves. Every checker has a test of its own on input
//! that breaks it.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers: a broken promise is a failed test"
)]

mod licence;
mod manifest;
mod source;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, MetadataCommand};
use tree::{Graph, Package};
use whetstone_model::threshold::metric::{METRICS, RECORDED};

/// Where `unsafe` may stand: what speaks to CUDA and SIMD, to NVML, and the simulated libraries.
const UNSAFE_FOLDERS: [&str; 3] = ["burnin/device/", "agent/src/probe/nvml", "tests/sim/"];

/// Longest file that is looked at, bytes; a larger one would be data, which does not belong here.
const MAX_FILE: u64 = 4 << 20;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace's root")
}

fn graph() -> Graph {
    // Each test asks for itself: half a second, and no state between tests.
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        // What this machine builds: cargo has fetched just that.
        .other_options([
            "--offline".to_owned(),
            format!("--filter-platform={}-unknown-linux-gnu", std::env::consts::ARCH),
        ])
        .exec()
        .expect("cargo metadata");
    let root = metadata.workspace_root.clone();
    let mut graph: Graph = BTreeMap::new();
    for package in &metadata.packages {
        let member = metadata.workspace_members.contains(&package.id);
        let folder = package.manifest_path.parent().and_then(|p| p.strip_prefix(&root).ok());
        graph.insert(
            package.id.repr.clone(),
            Package {
                name: package.name.to_string(),
                folder: folder.filter(|_| member).map(|f| f.as_str().to_owned()),
                licence: package.license.clone(),
                needs: Vec::new(),
            },
        );
    }
    for node in metadata.resolve.into_iter().flat_map(|r| r.nodes) {
        let normal =
            node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
        let needs = normal.map(|d| d.pkg.repr.clone()).collect();
        graph.get_mut(&node.id.repr).expect("a package for each node").needs = needs;
    }
    graph
}

/// All files that git tracks or would track; in a tree without git, all but build outputs.
fn files() -> Vec<PathBuf> {
    let root = root();
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&root)
        .output();
    let mut files: Vec<PathBuf> = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => output
            .stdout
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| PathBuf::from(String::from_utf8_lossy(name).into_owned()))
            .collect(),
        _ => walk(&root, Path::new("")),
    };
    files.retain(|f| root.join(f).is_file());
    assert!(files.len() > 50, "only {} files: this is not the workspace", files.len());
    files
}

fn walk(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.join(folder)).expect("a readable folder");
    entries
        .flatten()
        .filter(|e| ![".git", "target", "runs"].iter().any(|skip| e.file_name() == *skip))
        .flat_map(|e| {
            let path = folder.join(e.file_name());
            if e.path().is_dir() { walk(root, &path) } else { vec![path] }
        })
        .collect()
}

/// The text of a file; `None` for one that is not text.
fn text(file: &Path) -> Option<String> {
    let path = root().join(file);
    let size = std::fs::metadata(&path).map_or(0, |m| m.len());
    assert!(size <= MAX_FILE, "{}: {size} bytes; data does not belong into the repository", file.display());
    std::fs::read_to_string(path).ok()
}

fn rust_files() -> impl Iterator<Item = (PathBuf, String)> {
    files()
        .into_iter()
        .filter(|f| f.extension().is_some_and(|e| e == "rs"))
        .filter_map(|f| text(&f).map(|t| (f, t)))
}

#[test]
fn dependencies_point_one_way_and_pure_crates_need_nothing_impure() {
    let graph = graph();
    for folder in ["model", "burnin", "agent", "cli"] {
        assert!(
            graph.values().any(|p| p.folder.as_deref() == Some(folder)),
            "{folder} is no member any more"
        );
    }
    let problems = tree::problems(&graph);
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn pure_crates_have_no_clock_files_network_processes_or_threads() {
    let pure = |file: &Path| tree::PURE.iter().any(|folder| file.starts_with(Path::new(folder).join("src")));
    let is_test = |file: &Path| file.file_name().is_some_and(|n| n == "tests.rs") || in_tests_folder(file);
    let mut looked_at = 0;
    let mut problems = Vec::new();
    for (file, text) in rust_files().filter(|(f, _)| pure(f) && !is_test(f)) {
        looked_at += 1;
        for (line, what) in source::impurities(&source::bare(&text)) {
            problems.push(format!("{}:{line}: {what}", file.display()));
        }
    }
    assert!(looked_at > 20, "only {looked_at} files of pure crates were found");
    assert!(problems.is_empty(), "{problems:#?}");
}

fn in_tests_folder(file: &Path) -> bool {
    file.components().any(|c| c.as_os_str() == "tests")
}

#[test]
fn unsafe_stays_in_its_places() {
    let allowed = |file: &Path| UNSAFE_FOLDERS.iter().any(|f| file.to_string_lossy().starts_with(f));
    let mut problems = Vec::new();
    let mut inside = 0;
    for (file, text) in rust_files() {
        let lines = source::unsafe_lines(&source::bare(&text));
        if allowed(&file) {
            inside += lines.len();
        } else {
            problems.extend(lines.iter().map(|line| format!("{}:{line}", file.display())));
        }
    }
    assert!(inside > 0, "no unsafe anywhere: the search does not work, or the list above is out of date");
    assert!(problems.is_empty(), "unsafe outside {UNSAFE_FOLDERS:?}: {problems:#?}");
}

#[test]
fn members_take_versions_and_lints_from_the_workspace() {
    let mut members = 0;
    let mut problems = Vec::new();
    for package in graph().values() {
        let Some(folder) = &package.folder else { continue };
        members += 1;
        let file = Path::new(folder).join("Cargo.toml");
        let found = manifest::problems(&text(&file).expect("a manifest"));
        problems.extend(found.into_iter().map(|p| format!("{}: {p}", file.display())));
    }
    assert!(members >= 8, "only {members} members");
    assert!(problems.is_empty(), "{problems:#?}");
}

fn deny() -> toml::Table {
    text(Path::new("deny.toml")).expect("deny.toml").parse().expect("TOML")
}

fn strings(value: &toml::Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// The list is the one in `deny.toml`, so that `cargo deny` and this test cannot disagree.
#[test]
fn every_dependency_has_an_allowed_licence() {
    let allow = strings(&deny()["licenses"]["allow"]);
    assert!(allow.iter().any(|l| l == "Apache-2.0"));
    assert!(
        !allow.iter().any(|l| l.contains("GPL")),
        "copyleft is not compatible with how Whetstone is shipped"
    );
    let mut problems = Vec::new();
    for package in graph().values() {
        match package.licence.as_deref().map(|l| licence::allowed(l, &allow)) {
            Some(Ok(true)) => {}
            Some(Ok(false)) => problems.push(format!("{}: {:?}", package.name, package.licence)),
            Some(Err(error)) => problems.push(format!("{}: {error}", package.name)),
            None => problems.push(format!("{}: no licence expression", package.name)),
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn no_banned_package_is_needed() {
    let deny = deny();
    let banned: Vec<&str> = deny["bans"]["deny"]
        .as_array()
        .expect("bans.deny")
        .iter()
        .filter_map(|b| b.get("crate").and_then(toml::Value::as_str))
        .collect();
    assert!(!banned.is_empty());
    let needed: Vec<String> =
        graph().into_values().map(|p| p.name).filter(|n| banned.contains(&n.as_str())).collect();
    assert!(needed.is_empty(), "{needed:?}");
}

#[test]
fn all_packages_come_from_the_public_registry() {
    let lock: toml::Table = text(Path::new("Cargo.lock")).expect("Cargo.lock").parse().expect("TOML");
    let allowed = strings(&deny()["sources"]["allow-registry"]);
    let mut foreign = Vec::new();
    let packages = lock["package"].as_array().expect("packages");
    for package in packages {
        if let Some(source) = package.get("source").and_then(toml::Value::as_str)
            && !allowed.iter().any(|a| source.strip_prefix("registry+") == Some(a))
        {
            foreign.push(format!("{}: {source}", package["name"]));
        }
    }
    assert!(foreign.is_empty(), "{foreign:#?}");
    assert!(packages.len() > 50);
}

/// Texts that only one machine knows: where the workspace lies on it, the folder above, the home directory.
fn machine_paths() -> Vec<String> {
    let root = root();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    [Some(root.clone()), root.parent().map(Path::to_owned), home]
        .into_iter()
        .flatten()
        .map(|p| p.to_string_lossy().into_owned())
        .filter(|p| p.len() > 1)
        .collect()
}

/// Lines that name such a path, or a package mirror of somebody's own network.
fn machine_lines(text: &str, paths: &[String]) -> Vec<usize> {
    // Written in pieces, so that this file does not hold what it looks for.
    let mirrors = [
        concat!("://", "10."),
        concat!("://", "192.168."),
        concat!(".inter", "nal/"),
        concat!("artif", "actory"),
    ];
    let has_path = |line: &str, path: &str| {
        line.match_indices(path).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + path.len()..].chars().next();
            let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
            !before.is_some_and(|c| word(c) || matches!(c, '/' | '}' | ')')) && !after.is_some_and(word)
        })
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| {
            paths.iter().any(|p| has_path(line, p)) || mirrors.iter().any(|m| line.contains(m))
        })
        .map(|(i, _)| i + 1)
        .collect()
}

#[test]
fn machine_lines_are_found() {
    let paths = ["/srv/ws".to_owned(), "/srv".to_owned()];
    assert_eq!(machine_lines("a\nread /srv/ws/x\n\"/srv\"\n", &paths), [2, 3]);
    assert_eq!(machine_lines("/srvx /opt/srv /srv2 http://host/srv {dir}/srv", &paths), [0usize; 0]);
    assert_eq!(machine_lines(&["proxy = http:", "//10.", "0.0.1/crates"].concat(), &[]), [1]);
}

#[test]
fn no_tracked_file_names_a_path_of_this_machine_or_a_private_mirror() {
    let paths = machine_paths();
    let mut problems = Vec::new();
    for file in files() {
        let Some(text) = text(&file) else { continue };
        problems.extend(
            machine_lines(&text, &paths).into_iter().map(|line| format!("{}:{line}", file.display())),
        );
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn every_metric_is_described() {
    let page = text(Path::new("docs/metrics.md")).expect("docs/metrics.md");
    let rows: Vec<(String, String)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| {
            let mut cells = line.split('|').map(|c| c.trim().trim_matches('`').to_owned());
            Some((cells.next()?, cells.next()?))
        })
        .collect();
    let known: Vec<(String, String)> =
        METRICS.iter().chain(RECORDED).map(|m| (m.name.to_owned(), m.unit.as_str().to_owned())).collect();
    assert_eq!(rows, known, "docs/metrics.md lists METRICS and RECORDED, in their order");
}

/// Words in backticks that are meant as files or folders of the workspace: they have a slash or are a manifest.
fn paths_in(page: &str) -> Vec<&str> {
    let is_path = |word: &&str| {
        let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_'));
        plain && (word.contains('/') || word.ends_with(".toml") || *word == "LICENSE")
    };
    page.split('`').skip(1).step_by(2).filter(is_path).collect()
}

#[test]
fn contributing_names_places_that_exist() {
    assert_eq!(
        paths_in("see `a/b.rs`, `make x`, `// SAFETY:`, `deny.toml` and `x = 1`"),
        ["a/b.rs", "deny.toml"]
    );
    let page = text(Path::new("CONTRIBUTING.md")).expect("CONTRIBUTING.md");
    // Names that are meant relative to any crate.
    let paths: Vec<&str> = paths_in(&page).into_iter().filter(|p| *p != "tests/").collect();
    assert!(paths.len() > 20, "{paths:?}");
    let missing: Vec<&&str> = paths.iter().filter(|p| !root().join(p).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
