//! What is committed is what the code says, and every alert leads to a page.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: what fails here is a failed test"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use whetstone_dashboards::alerts::{self, Runbook};
use whetstone_dashboards::catalogue::METRICS;
use whetstone_dashboards::{RUNBOOKS, boards, docs, expr, files, lint};
use whetstone_model::lifecycle::PhaseName;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn dashboards_and_alerts_are_clean() {
    let problems = lint::all(&boards::all(), &alerts::all());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_metric_is_looked_at_somewhere() {
    let mut read: BTreeSet<&str> = BTreeSet::new();
    for board in boards::all() {
        for target in board.panels().flat_map(|panel| &panel.targets) {
            read.extend(expr::parts(&target.expr).metrics().iter().map(|metric| metric.name));
        }
    }
    let all: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(all.difference(&read).collect::<Vec<_>>(), Vec::<&&str>::new(), "no panel shows these");
}

#[test]
fn the_lints_find_slips() {
    let mut all = boards::all();
    all[0].rows[0].panels[0].targets[0].expr = "sum(whetstone_bladez)".into();
    all[0].rows[0].panels[1].unit.clear();
    all[0].rows[0].panels[2].description.clear();
    all[0].rows[1].panels[0].targets[0].legend = "{{tranche}}".into();
    all[1].variables[0].name = "other";
    let mut rules = alerts::all();
    rules[0].expr = "sum(whetstone_nothing) > 0".into();
    rules[1].signals.clear();
    rules[2].runbook = Runbook::Page("");
    let problems = lint::all(&all, &rules).join("\n");
    for what in [
        "whetstone_bladez is no series",
        "has no unit",
        "has no description",
        "the legend names tranche",
        "nothing uses the variable $other",
        "$tranche is not defined",
        "WhetstoneBladesStuck: whetstone_nothing is no series",
        "WhetstoneIdentityConflict: says nothing of what it measures",
        "WhetstoneBreakerOpen: has no page",
    ] {
        assert!(problems.contains(what), "{what:?} is not in\n{problems}");
    }
}

#[test]
fn committed_files_are_current() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let again = "run: cargo run -p whetstone-dashboards -- generate --out dashboards --docs docs";
    let wanted = files(RUNBOOKS).unwrap();
    for (path, text) in &wanted {
        assert!(read(&here.join(path)) == *text, "{} is not current; {again}", path.display());
    }
    assert!(
        read(&root().join("docs/operator-metrics.md")) == docs::page(),
        "docs/operator-metrics.md: {again}"
    );
    let names: BTreeSet<_> = wanted.iter().filter_map(|(path, _)| path.file_name()).collect();
    for entry in std::fs::read_dir(here.join("grafana")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(names.contains(name.as_os_str()), "nothing writes grafana/{}", name.display());
    }
}

#[test]
fn grafana_json_has_what_grafana_needs() {
    for board in boards::all() {
        let json = board.json();
        let panels = json["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{}: ids are unique", board.name);
        let mut taken = BTreeSet::new();
        for panel in panels {
            let place = format!("{}/{}", board.name, panel["title"]);
            let pos = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            for x in pos("x")..pos("x") + pos("w") {
                assert!(x < 24, "{place} leaves the grid");
                for y in pos("y")..pos("y") + pos("h") {
                    assert!(taken.insert((x, y)), "{place} lies on another panel");
                }
            }
            let kind = panel["type"].as_str().unwrap();
            if kind == "row" || kind == "text" {
                continue;
            }
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{place}");
            assert!(
                panel["fieldConfig"]["defaults"]["unit"].as_str().is_some_and(|u| !u.is_empty()),
                "{place}"
            );
            if kind == "timeseries" {
                assert_eq!(panel["options"]["legend"]["showLegend"], true, "{place}");
            }
            let refs: BTreeSet<&str> =
                panel["targets"].as_array().unwrap().iter().map(|t| t["refId"].as_str().unwrap()).collect();
            assert_eq!(refs.len(), panel["targets"].as_array().unwrap().len(), "{place}");
        }
        let first = &json["templating"]["list"][0];
        assert_eq!(
            (first["name"].as_str(), first["type"].as_str()),
            (Some("datasource"), Some("datasource"))
        );
    }
}

/// Pages that alerts lead to.
fn wanted_pages() -> BTreeSet<String> {
    let mut pages = BTreeSet::new();
    for alert in alerts::all() {
        match alert.runbook {
            Runbook::Page(name) => {
                pages.insert(format!("{name}.md"));
            }
            Runbook::Phase => {
                for phase in PhaseName::ALL.iter().filter(|phase| phase.limit_ms().is_some()) {
                    pages.insert(stuck_page(phase.as_str()));
                }
            }
        }
    }
    pages
}

/// As the template in the alert makes it: `BurningIn` → `stuck-burning-in.md`.
fn stuck_page(phase: &str) -> String {
    let mut slug = String::new();
    for c in phase.chars() {
        if c.is_ascii_uppercase() && !slug.is_empty() {
            slug.push('-');
        }
        slug.push(c.to_ascii_lowercase());
    }
    format!("stuck-{slug}.md")
}

#[test]
fn every_alert_has_its_page_and_every_page_is_linked() {
    let folder = root().join(RUNBOOKS);
    let wanted = wanted_pages();
    let index = read(&folder.join("README.md"));
    let mut there = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "README.md" {
            assert!(index.contains(&format!("({name})")), "README.md does not link {name}");
            there.insert(name);
        }
    }
    assert_eq!(there, wanted, "pages that exist, and pages that alerts lead to");
    for alert in alerts::all() {
        assert!(index.contains(alert.name), "README.md does not name {}", alert.name);
    }
    for name in &there {
        let page = read(&folder.join(name));
        for heading in ["## What it means", "## What to look at", "## What to do", "## When to escalate"] {
            assert!(page.contains(heading), "{name} lacks {heading:?}");
        }
        assert!(page.contains("```"), "{name} has no command to run");
        // Links between pages lead somewhere.
        for link in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or(link);
            let found = target.is_empty() || target.contains("://") || folder.join(target).exists();
            assert!(found, "{name}: {link} leads nowhere");
        }
    }
}

#[test]
fn pages_that_panels_name_exist() {
    for board in boards::all() {
        for panel in board.panels() {
            for rest in panel.description.split(RUNBOOKS).skip(1) {
                let (page, _) = rest.split_once(".md").expect("a page ends in .md");
                if !page.contains('*') {
                    let path = root().join(format!("{RUNBOOKS}{page}.md"));
                    assert!(path.is_file(), "{}/{}: {}", board.name, panel.title, path.display());
                }
            }
        }
    }
}
