//! The table that ends a demonstration.

use std::fmt::Write;
use std::path::Path;

use super::score::{Row, Score};

/// Widest column of reasons, characters.
const WHY: usize = 66;
const NEXT: usize = 36;

pub fn text(score: &Score, index: &Path) -> String {
    let mut out = String::new();
    let mut line = |cells: [&str; 6]| {
        let [blade, verdict, device, why, next, planted] = cells;
        let row = format!(
            "{blade:<7} {verdict:<12} {:<10} {:<WHY$} {:<NEXT$} {planted}",
            cut(device, 10),
            cut(why, WHY),
            cut(next, NEXT)
        );
        // A String takes everything that is written to it.
        let _ = writeln!(out, "{}", row.trim_end());
    };
    line(["BLADE", "VERDICT", "DEVICE", "WHY", "NEXT", "PLANTED"]);
    for row in &score.rows {
        let Row { blade, verdict, device, why, next, planted, .. } = row;
        let planted =
            if planted.is_empty() { "(nothing: a healthy device)".to_owned() } else { planted.join("; ") };
        line([blade, verdict, device, why, next, &planted]);
    }
    let bad = score.blades.iter().filter(|b| !b.planted.is_empty()).count();
    let _ = writeln!(
        out,
        "{} of {} pass · planted {} faults on {bad} blades: {} found, {} healthy devices accused · recall {:.3}, precision {:.3} · reports: {}",
        score.passed(),
        score.blades.len(),
        score.planted,
        score.found,
        score.healthy_accused,
        score.recall,
        score.precision,
        index.display()
    );
    if score.healthy_not_passed > 0 {
        let _ = writeln!(out, "{} healthy blades did not pass", score.healthy_not_passed);
    }
    for missed in &score.missed {
        let _ = writeln!(out, "missed: {missed}");
    }
    out
}

/// The first `width` characters, the last of them an ellipsis if something is left out.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        text.to_owned()
    } else {
        text.chars().take(width - 1).chain(['…']).collect()
    }
}
