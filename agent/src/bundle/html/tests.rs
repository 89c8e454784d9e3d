//! The page holds what the report holds, escaped, and asks nothing of the network.

mod sample;

use sample::{eight_gpus, host_only, id};
use whetstone_model::report::{Matrix, Profile, Series};
use whetstone_model::unit::Unit;
use whetstone_model::verdict::Outcome;

use super::{IndexRow, render, render_index};

#[test]
fn says_verdict_device_reason_and_next_step() {
    let page = render(&eight_gpus());
    for text in [
        "banner fail",
        "3 wrong bits in 2 tiles, all on SM 41",
        "Next: replace",
        "reseat, burn in again",
        "gpu6",
        "no answer for 20 s",
        "p2p.bandwidth",
        "temperature.gpu",
        "96.00.74.00.01",
        "whet report verify",
    ] {
        assert!(page.contains(text), "{text} is missing");
    }
    // The planted slow SM is pointed out with its distance; the PCIe link at half width is marked against its floor.
    assert!(page.contains("gpu5 sm 41: "), "slow SM");
    assert!(page.contains("num bad"), "a reading beyond its limit");
}

#[test]
fn a_simulated_run_cannot_be_taken_for_hardware() {
    assert!(render(&eight_gpus()).matches("SIMULATED — not a hardware result").count() >= 2);
    assert!(!render(&host_only()).contains("SIMULATED"));
}

#[test]
fn needs_nothing_from_outside() {
    for page in [render(&eight_gpus()), render(&host_only()), render_index(&rows())] {
        for forbidden in ["http://", "https://", "src=", "<script", "@import", "url(", "<link"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }
}

#[test]
fn everything_from_a_report_is_escaped() {
    let evil = "<script>alert(1)</script>\"'><img src=x onerror=y>&";
    let mut report = eight_gpus();
    report.run = evil.into();
    report.blade.name = evil.into();
    report.blade.serial = Some(evil.into());
    report.blade.sku = Some(evil.into());
    report.verdict.why = evil.into();
    report.incomplete_because = Some(evil.into());
    report.complete = false;
    report.versions.driver = Some(evil.into());
    report.suite.name = evil.into();
    report.devices[0].id = id(evil);
    for device in &mut report.devices {
        device.label = evil.into();
        device.model = evil.into();
    }
    for finding in &mut report.findings {
        (finding.detail, finding.code) = (evil.into(), evil.into());
    }
    for test in &mut report.tests {
        (test.name, test.kind, test.detail) = (evil.into(), evil.into(), evil.into());
        test.notes.push(evil.into());
        for r in &mut test.readings {
            r.reading.metric = evil.into();
        }
        for m in &mut test.matrices {
            m.metric = evil.into();
            m.rows.fill(evil.into());
            m.columns.fill(evil.into());
        }
        for p in &mut test.profiles {
            (p.metric, p.index) = (evil.into(), evil.into());
        }
        for d in &mut test.digests {
            (d.key, d.value) = (evil.into(), evil.into());
        }
    }
    for series in &mut report.series {
        series.metric = evil.into();
    }
    let page = render(&report);
    assert!(!page.contains("<script") && !page.contains("<img"));
    // A quote that got through would end an attribute.
    assert!(!page.contains("</script>\"") && page.contains("&lt;script&gt;"));
}

#[test]
fn a_run_that_was_cut_off_says_so() {
    let mut report = host_only();
    (report.complete, report.ended_ms, report.incomplete_because) = (false, None, Some("interrupted".into()));
    report.verdict.outcome = Outcome::Inconclusive;
    let page = render(&report);
    assert!(page.contains("The run is not complete") && page.contains("(interrupted)"));
    assert!(page.contains("banner inconclusive"));
}

#[test]
fn odd_numbers_and_sizes_are_drawn_or_left_out() {
    let mut report = host_only();
    let test = &mut report.tests[0];
    for values in [vec![], vec![None; 3], vec![Some(f64::NAN)], vec![Some(0.0); 5], vec![Some(1.0); 100_000]]
    {
        test.profiles.push(Profile {
            device: None,
            metric: "m".into(),
            unit: Unit::Count,
            index: "core".into(),
            values,
        });
    }
    test.matrices.push(Matrix {
        metric: "m".into(),
        unit: Unit::GBps,
        rows: vec![],
        columns: vec![],
        values: vec![],
    });
    test.matrices.push(Matrix {
        metric: "m".into(),
        unit: Unit::GBps,
        rows: vec!["a".into()],
        columns: vec!["b".into(); 2],
        values: vec![vec![Some(f64::INFINITY), None, Some(-3.0)]],
    });
    for points in [vec![], vec![(0, f64::NAN)], vec![(5, 1.0)], vec![(u64::MAX, 1.0), (0, -1e300)]] {
        report.series.push(Series { device: None, metric: "s".into(), unit: Unit::Watt, points });
    }
    let page = render(&report);
    for forbidden in ["NaN", "inf ", "\"inf"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.len() < 2_000_000, "{}", page.len());
}

#[test]
fn lines_are_thinned_but_keep_their_peaks() {
    let mut report = host_only();
    let mut points: Vec<(u64, f64)> = (0..50_000).map(|i| (i * 100, 50.0)).collect();
    points[31_337].1 = 93.0;
    report.series.push(Series {
        device: None,
        metric: "temperature.gpu".into(),
        unit: Unit::Celsius,
        points,
    });
    let page = render(&report);
    assert!(page.len() < 100_000, "{}", page.len());
    // The axis reaches the peak and so does the line: its highest point has the least y.
    let path = page.split("d=\"").nth(1).unwrap().split('"').next().unwrap();
    let ys: Vec<f64> = path.split(['M', 'L']).filter_map(|p| p.split(' ').nth(1)?.parse().ok()).collect();
    let least = ys.iter().copied().fold(f64::MAX, f64::min);
    assert!(ys.iter().filter(|y| **y < least + 1.0).count() == 1 && least < 60.0, "{least}");
}

#[test]
fn the_schema_page_names_every_field() {
    fn keys(value: &serde_json::Value, into: &mut std::collections::BTreeSet<String>) {
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(key, inner)| {
                into.insert(key.clone());
                keys(inner, into);
            }),
            serde_json::Value::Array(list) => list.iter().for_each(|inner| keys(inner, into)),
            _ => {}
        }
    }
    let mut report = eight_gpus();
    report.incomplete_because = Some("running".into());
    let mut all = Default::default();
    keys(&serde_json::to_value(&report).unwrap(), &mut all);
    assert!(all.len() > 40, "{all:?}");
    let page = include_str!("../../../../docs/report-schema.md");
    for key in all {
        let named = page.contains(&format!("`{key}`")) || page.contains(&format!(".{key}`"));
        assert!(named, "docs/report-schema.md does not name {key}");
    }
}

fn rows() -> Vec<IndexRow> {
    [("b-001", Outcome::Pass), ("b-003", Outcome::Fail), ("b-009", Outcome::Inconclusive)]
        .map(|(blade, outcome)| IndexRow {
            blade: blade.into(),
            outcome,
            device: (outcome == Outcome::Fail).then(|| "gpu5".into()),
            why: "a < b & c".into(),
            next: "replace".into(),
            link: format!("{blade}/report.html"),
            simulated: true,
        })
        .to_vec()
}

#[test]
fn the_index_lists_the_worst_first_and_links_only_to_its_own_folder() {
    let page = render_index(&rows());
    let at = |text: &str| page.find(text).unwrap();
    assert!(
        at("b-003/report.html") < at("b-009/report.html")
            && at("b-009/report.html") < at("b-001/report.html")
    );
    assert!(page.contains("a &lt; b &amp; c") && page.contains("SIMULATED"));
    let mut evil = rows();
    evil[0].link = "javascript:alert(1)".into();
    assert!(!render_index(&evil).contains("javascript:"));
}
