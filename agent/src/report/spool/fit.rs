//! Bounds on what one item may say, so that a report of any of them fits into a call.

use whetstone_model::evidence::Finding;
use whetstone_model::wire::ItemBody;

/// Longest text of an item, bytes.
const MAX_TEXT: usize = 2_000;
/// Longest code or metric, bytes; real ones are under 60.
const MAX_CODE: usize = 200;

/// The item with every text within its bound.
pub(super) fn fit(mut body: ItemBody) -> ItemBody {
    fn cut(text: &mut String, limit: usize) {
        if text.len() > limit {
            text.truncate(text.floor_char_boundary(limit));
            text.push('…');
        }
    }
    fn cut_finding(finding: &mut Finding) {
        cut(&mut finding.code, MAX_CODE);
        cut(&mut finding.detail, MAX_TEXT);
        if let Some(reading) = &mut finding.reading {
            cut(&mut reading.metric, MAX_CODE);
        }
    }
    match &mut body {
        ItemBody::Appeared { finding } | ItemBody::Cleared { finding } => cut_finding(finding),
        ItemBody::Kernel { finding, line } => {
            cut_finding(finding);
            cut(line, MAX_TEXT);
        }
        ItemBody::Reading { reading, .. } => cut(&mut reading.metric, MAX_CODE),
        ItemBody::Note { text } => cut(text, MAX_TEXT),
    }
    body
}
