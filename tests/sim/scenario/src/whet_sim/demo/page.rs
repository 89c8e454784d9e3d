//! `index.html` of a demonstration: every blade, what was planted, what was found, its report.

use super::run::Ran;
use super::score::Score;

pub fn html(score: &Score, own: Option<&Ran>) -> String {
    let mut rows = String::new();
    if let Some(own) = own {
        rows += &row(
            "this-machine",
            own.report.is_ok(),
            own.word(),
            own.why(),
            "(real hardware, nothing planted)",
            own.took.as_secs(),
        );
    }
    for blade in &score.blades {
        rows += &row(
            &blade.blade,
            blade.has_report,
            &blade.verdict,
            &blade.why,
            &blade.planted.join("; "),
            blade.seconds,
        );
    }
    let found: String = score
        .rows
        .iter()
        .map(|r| {
            let cells = [&r.blade, &r.verdict, &r.device, &r.why, &r.next, &r.planted.join("; ")];
            format!(
                "<tr class=\"{}\">{}</tr>\n",
                escape(&r.verdict),
                cells.map(|c| format!("<td>{}</td>", escape(c))).concat()
            )
        })
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Whetstone demonstration</title><style>\
         body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1c2127;background:#fff}}\
         table{{border-collapse:collapse;width:100%;margin:1rem 0 2rem}}th,td{{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #d9dee4;vertical-align:top}}\
         th{{font-weight:600}}tr.fail td:nth-child(2),tr.outlier td:nth-child(2),tr.missed td:nth-child(2){{color:#b3261e;font-weight:600}}\
         tr.pass td:nth-child(2){{color:#1b6e3c;font-weight:600}}tr.inconclusive td:nth-child(2){{color:#8a5a00;font-weight:600}}\
         .note{{background:#fff4d6;border-left:4px solid #c98a00;padding:.6rem 1rem}}</style></head><body>\
         <h1>A tranche of {} simulated blades</h1>\
         <p class=\"note\">All but “this machine” is simulated silicon: nothing there is a result of hardware.</p>\
         <p>{} of {} pass. {} faults planted (seed {}), {} found; {} healthy devices accused. Recall {:.3}, precision {:.3}.</p>\
         <table><tr><th>Blade</th><th>Verdict</th><th>Why</th><th>Planted</th><th>Time</th></tr>\n{rows}</table>\
         <h2>Each accused device</h2><table><tr><th>Blade</th><th>Verdict</th><th>Device</th><th>Why</th><th>Next</th><th>Planted</th></tr>\n{found}</table>\
         <p>Files: <a href=\"planted.json\">planted.json</a>, <a href=\"demo.json\">demo.json</a>, \
         <a href=\"judgement.json\">judgement.json</a>, <a href=\"samples.jsonl\">samples.jsonl</a></p></body></html>\n",
        score.blades.len(),
        score.passed(),
        score.blades.len(),
        score.planted,
        score.seed,
        score.found,
        score.healthy_accused,
        score.recall,
        score.precision,
    )
}

fn row(blade: &str, has_report: bool, verdict: &str, why: &str, planted: &str, seconds: u64) -> String {
    let name = escape(blade);
    let name = if has_report { format!("<a href=\"{name}/report.html\">{name}</a>") } else { name };
    format!(
        "<tr class=\"{0}\"><td>{name}</td><td>{0}</td><td>{1}</td><td>{2}</td><td>{seconds} s</td></tr>\n",
        escape(verdict),
        escape(why),
        escape(planted)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
