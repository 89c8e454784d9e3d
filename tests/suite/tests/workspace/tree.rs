//! The dependency graph as `cargo metadata` tells it, reduced to what the rules are about.

use std::collections::{BTreeMap, BTreeSet};

/// One package.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Package {
    pub name: String,
    /// Folder of a workspace member relative to the root (`burnin/device`), `None` for a package from a registry.
    pub folder: Option<String>,
    pub licence: Option<String>,
    /// Keys of the packages that it needs when it is built for use (normal dependencies; not dev, not build).
    pub needs: Vec<String>,
}

/// Packages by a unique key.
pub type Graph = BTreeMap<String, Package>;

/// What no pure crate may need, directly or not: async runtimes, clients, servers, devices, the operating
/// system, sources of randomness.
pub const IMPURE: [&str; 16] = [
    "tokio",
    "kube",
    "kube-client",
    "sqlx",
    "sqlx-core",
    "axum",
    "hyper",
    "russh",
    "nvml-wrapper",
    "nvml-wrapper-sys",
    "cudarc",
    "reqwest",
    "rustix",
    "rand",
    "getrandom",
    "libc",
];

/// Folders of pure crates.
pub const PURE: [&str; 4] = ["model", "burnin", "operator/plan", "scheduler"];

/// Folders of the packages that are shipped as binaries.
pub const SHIPPED: [&str; 5] = ["cli", "agent", "operator", "gateway", "portal"];

/// Everything that a package needs, itself not included.
pub fn closure<'a>(graph: &'a Graph, key: &str) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut left: Vec<&str> = vec![key];
    while let Some(next) = left.pop() {
        for need in graph.get(next).into_iter().flat_map(|p| &p.needs) {
            if seen.insert(need.as_str()) {
                left.push(need);
            }
        }
    }
    seen
}

fn is_under(folder: Option<&str>, parent: &str) -> bool {
    folder.is_some_and(|f| f == parent || f.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/')))
}

/// Broken rules of purity and direction, one sentence each.
pub fn problems(graph: &Graph) -> Vec<String> {
    let mut problems = Vec::new();
    for (key, package) in graph {
        let Some(folder) = package.folder.as_deref() else { continue };
        let needs: Vec<&Package> = closure(graph, key).into_iter().filter_map(|k| graph.get(k)).collect();
        for need in &needs {
            let there = need.folder.as_deref();
            let why = if PURE.contains(&folder) && IMPURE.contains(&need.name.as_str()) {
                Some("a pure crate does no IO")
            } else if PURE.contains(&folder) && there.is_some_and(|f| !PURE.contains(&f)) {
                Some("a pure crate depends on pure crates only")
            } else if folder == "model" && there.is_some() {
                Some("everything depends on the model, not the other way round")
            } else if folder == "agent" && is_under(there, "operator") {
                Some("the agent never depends on an operator crate")
            } else if SHIPPED.contains(&folder) && is_under(there, "tests") {
                Some("simulators and tests are never part of a shipped binary")
            } else if is_under(there, "cli") {
                Some("nothing depends on a binary")
            } else {
                None
            };
            if let Some(why) = why {
                problems.push(format!("{} needs {}: {why}", package.name, need.name));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, Option<&str>, &[&str])]) -> Graph {
        let package = |(name, folder, needs): &(&str, Option<&str>, &[&str])| {
            let package = Package {
                name: (*name).to_owned(),
                folder: folder.map(str::to_owned),
                licence: None,
                needs: needs.iter().map(|n| (*n).to_owned()).collect(),
            };
            ((*name).to_owned(), package)
        };
        edges.iter().map(package).collect()
    }

    #[test]
    fn each_rule_of_direction_can_break() {
        let good = graph(&[
            ("model", Some("model"), &["serde"]),
            ("burnin", Some("burnin"), &["model"]),
            ("device", Some("burnin/device"), &["burnin", "libc"]),
            ("agent", Some("agent"), &["device", "model"]),
            ("whet", Some("cli"), &["agent"]),
            ("sim", Some("tests/sim/nvml"), &["model"]),
            ("serde", None, &[]),
            ("libc", None, &[]),
            ("tokio", None, &["libc"]),
            ("helper", None, &["getrandom"]),
            ("getrandom", None, &[]),
            ("store", Some("operator/store"), &["tokio"]),
        ]);
        assert_eq!(problems(&good), [] as [String; 0]);
        for (package, need) in [
            ("model", "tokio"),
            // Not directly, but through a harmless library.
            ("burnin", "helper"),
            ("model", "burnin"),
            ("burnin", "device"),
            ("agent", "store"),
            ("whet", "sim"),
            // Through the agent.
            ("agent", "sim"),
            ("sim", "whet"),
        ] {
            let mut bad = good.clone();
            bad.get_mut(package).unwrap().needs.push(need.to_owned());
            assert!(!problems(&bad).is_empty(), "{package} -> {need}");
        }
    }
}
