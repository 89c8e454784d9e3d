//! Rules for `Cargo.toml` files.

use toml::{Table, Value};

/// Fields of `[package]` that the workspace decides.
const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];

/// What a member's manifest does not leave to the workspace.
pub fn problems(text: &str) -> Vec<String> {
    let manifest: Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![format!("not TOML: {error}")],
    };
    let mut problems = Vec::new();
    if !manifest.get("lints").is_some_and(inherits) {
        problems.push("no [lints] workspace = true".to_owned());
    }
    let package = manifest.get("package").and_then(Value::as_table);
    for field in INHERITED {
        if !package.and_then(|p| p.get(field)).is_some_and(inherits) {
            problems.push(format!("package.{field} is not the workspace's"));
        }
    }
    dependencies(&manifest, &mut problems);
    let targets = manifest.get("target").and_then(Value::as_table);
    for target in targets.into_iter().flat_map(Table::values).filter_map(Value::as_table) {
        dependencies(target, &mut problems);
    }
    problems
}

fn inherits(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

fn dependencies(section: &Table, problems: &mut Vec<String>) {
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, value) in section.get(kind).and_then(Value::as_table).into_iter().flatten() {
            let restated =
                ["version", "path", "git", "branch", "rev"].iter().any(|key| value.get(key).is_some());
            if !inherits(value) || restated {
                problems.push(format!("{kind}.{name} does not take its version from the workspace"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"x\"\nversion.workspace = true\nedition.workspace = true\n\
        rust-version.workspace = true\nlicense.workspace = true\npublish.workspace = true\n\
        [lints]\nworkspace = true\n[dependencies]\nserde = { workspace = true, features = [\"rc\"] }\n";

    #[test]
    fn a_member_that_restates_something_is_found() {
        assert_eq!(problems(GOOD), [] as [String; 0]);
        for (from, to) in [
            ("[lints]\nworkspace = true\n", ""),
            ("edition.workspace = true", "edition = \"2021\""),
            ("version.workspace = true\ne", "version = \"1.0.0\"\ne"),
            ("{ workspace = true, features = [\"rc\"] }", "\"1\""),
            ("workspace = true, features", "path = \"../x\", features"),
            ("[dependencies]", "[dev-dependencies]\ntempfile = \"3\"\n[dependencies]"),
            (
                "[dependencies]",
                "[target.'cfg(unix)'.dependencies]\nlibc = { version = \"0.2\" }\n[dependencies]",
            ),
        ] {
            let bad = GOOD.replacen(from, to, 1);
            assert_ne!(bad, GOOD, "{from}");
            assert_eq!(problems(&bad).len(), 1, "{to}: {:?}", problems(&bad));
        }
        assert_eq!(problems("[[").len(), 1);
    }
}
