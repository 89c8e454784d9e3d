//! Tables and times for people.

/// What stands where there is nothing to say.
pub const NONE: &str = "–";

/// Columns as wide as their widest cell, two spaces between them.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }
}

impl Table {
    /// Its lines, the head first. Columns are at least as wide as `widths`, which grows: lines that come one by one stay in
    /// line with those before them.
    pub fn lines(&self, widths: &mut Vec<usize>) -> Vec<String> {
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(widths.iter()).map(|(cell, width)| format!("{cell:<width$}  "));
            cells.collect::<String>().trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lines(&mut Vec::new()).iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Text from elsewhere on one line, and nothing in it that a terminal would obey.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The text, or [`NONE`].
pub fn cell(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).map_or(NONE.to_owned(), clean)
}

/// The beginning, with `…` where something was cut off.
pub fn cut(text: &str, most: usize) -> String {
    match text.chars().count() <= most {
        true => text.to_owned(),
        false => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// `42s`, `9m`, `2h 5m`, `3d 4h`; of a time to come `0s`.
pub fn duration(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: &str, small: i64, part: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit} {small}{part}"),
    };
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m"),
        () if hours < 48 => two(hours, "h", minutes % 60, "m"),
        () => two(days, "d", hours % 24, "h"),
    }
}

/// How long ago, without a space: for a column.
pub fn age(since_ms: Option<i64>, now_ms: i64) -> String {
    since_ms.map_or(NONE.to_owned(), |since| duration(now_ms.saturating_sub(since)).replace(' ', ""))
}

pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(&["NAME", "OWNER", "REASON"]);
        table.row(["b-003".into(), cell(None), "gpu5\u{1b}[2J sdc\nx".into()]);
        table.row(["b-10004".into(), cell(Some("spare")), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME     OWNER  REASON\nb-003    –      gpu5 [2J sdc x\nb-10004  spare\n"
        );
    }

    #[test]
    fn durations_are_short_and_never_negative() {
        const MINUTE: i64 = 60_000;
        for (ms, text) in [
            (-5, "0s"),
            (42_999, "42s"),
            (9 * MINUTE + 59_999, "9m"),
            (125 * MINUTE, "2h 5m"),
            (120 * MINUTE, "2h"),
            (76 * 60 * MINUTE, "3d 4h"),
            (i64::MAX, "106751991167d 7h"),
        ] {
            assert_eq!(duration(ms), text);
        }
        assert_eq!(age(Some(0), 125 * MINUTE), "2h5m");
        assert_eq!(age(Some(i64::MIN), i64::MAX), "106751991167d7h");
        assert_eq!(age(None, 0), "–");
    }

    #[test]
    fn long_text_is_cut_by_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äö…");
    }
}
