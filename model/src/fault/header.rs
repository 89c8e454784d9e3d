//! What stands before the message: time, level, host, program. A message counts only where one can begin, so that text
//! which merely quotes a kernel line (a shell history, an audit record, a chat bot) is no fault.

use regex::bytes::Regex;

/// Finds headers, one piece at a time, and the places inside a line where another line was written into it.
#[derive(Debug)]
pub struct Headers {
    piece: Regex,
    program: Regex,
    uptime: Regex,
    torn: Regex,
    record: Regex,
}

/// Pieces of a header; a real one has at most about six.
const MAX_PIECES: usize = 12;
/// Segments of one line; a torn line of 8 KiB has a handful.
const MAX_SEGMENTS: usize = 64;

const PIECE: &str = r"(?-u)^(?:
    \d{1,5},\d{1,20},\d{1,20},[^;\s]{0,64};                                        # /dev/kmsg record
  | <\d{1,3}>(?:1\ )?                                                              # syslog level
  | \[(?:\s*\d{1,12}\.\d{1,9}|\.\.\.|tid\ \d{1,10}|\s*[TC]\d{1,9}
      |(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\ [^\]\n]{1,40}
      |FATAL|CRITICAL|ERROR|WARN|WARNING|NOTICE|INFO|DEBUG)\]:?
  | (?:kern|user|daemon|syslog|auth|local\d)\s*:\s*(?:emerg|alert|crit|err|warn|notice|info|debug)\s*:  # dmesg -x
  | (?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\ )?\d{4}-\d\d-\d\d[T\ ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|\ ?[+-]\d\d:?\d\d|\ [A-Z]{3,4}\b)?
  | (?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\ )?(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\s+\d{1,2}\ \d\d:\d\d:\d\d(?:\.\d{1,9})?(?:\ \d{4})?
  | \d{9,10}\.\d{3,9}                                                              # journalctl -o short-unix
  | (?:[A-Za-z0-9._-]{1,64}\s+)?kernel(?:\[\d{1,10}\])?(?::|(?:\s+-){1,3}(?:\s|$))
)\s*";

/// A program's name before a message: `sshd[123]:`, or a few that log without a number. Those name text that users wrote.
const PROGRAM: &str = r"(?-u)^(?:[A-Za-z0-9._-]{1,64}\s+)?(?:([A-Za-z0-9_.@/()+~-]{1,64})\[\d{1,10}\]:|(sudo|su|sshd|login|cron|CRON|audit|auditd|logger|root|bash|zsh|dockerd|containerd|kubelet|gpud|nvsentinel|dbus-daemon):)(?:\s|$)";

impl Headers {
    pub fn new() -> Result<Self, regex::Error> {
        let verbose = |pattern: &str| {
            regex::bytes::RegexBuilder::new(pattern).ignore_whitespace(true).unicode(false).build()
        };
        let plain = |pattern: &str| regex::bytes::RegexBuilder::new(pattern).unicode(false).build();
        Ok(Self {
            piece: verbose(PIECE)?,
            program: plain(PROGRAM)?,
            uptime: plain(r"^(?:<\d{1,3}>)?\[\s*(\d{1,12})\.\d{1,9}\]|^\d{1,5},\d{1,20},(\d{1,20}),")?,
            torn: plain(r"\[\s{0,6}\d{1,8}\.\d{6}\]\s")?,
            record: plain(r"^\d{1,5},\d{1,20},\d{1,20},[^;\s]{0,64};")?,
        })
    }
}

/// A piece of a line in which a message may begin, after its header.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// The text after the header.
    pub body: &'a [u8],
    /// The program that wrote it, if it is not the kernel.
    pub program: Option<&'a [u8]>,
    /// Seconds since boot, if the header has them.
    pub uptime_s: Option<u64>,
}

impl Segment<'_> {
    pub fn is_kernel(&self) -> bool {
        self.program.is_none()
    }

    /// Whether a message may begin at `start`: at most `lead` words before it, none of them a quotation.
    pub fn may_begin(&self, start: usize, lead: usize) -> bool {
        let before = self.body.get(..start).unwrap_or_default();
        let quoted = before.iter().any(|b| matches!(b, b'"' | b'`' | b'\'' | b'=' | b'\\'));
        let words = before.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count();
        !quoted && words <= lead
    }
}

/// The segments of a line: its lines if it holds several, and what was written into the middle of it.
pub fn segments<'a>(headers: &Headers, line: &'a [u8]) -> Vec<Segment<'a>> {
    let mut found = Vec::new();
    for line in line.split(|b| *b == b'\n') {
        let mut program = None;
        // A record of /dev/kmsg is one line: its own line ends are written as `\x0a`.
        let record = headers.record.is_match(line);
        let mut rest = Some(line);
        while let Some(part) = rest {
            let end = if record { memchr::memmem::find(part, ESCAPED_LINE_END) } else { None };
            rest = end.map(|end| &part[end + ESCAPED_LINE_END.len()..]);
            split_torn(headers, end.map_or(part, |end| &part[..end]), &mut program, &mut found);
            if found.len() >= MAX_SEGMENTS {
                return found;
            }
        }
    }
    found
}

const ESCAPED_LINE_END: &[u8] = b"\\x0a";

/// Cuts where a time stamp of the kernel shows that another line was written into this one.
fn split_torn<'a>(
    headers: &Headers,
    line: &'a [u8],
    program: &mut Option<&'a [u8]>,
    found: &mut Vec<Segment<'a>>,
) {
    let mut start = 0;
    while found.len() < MAX_SEGMENTS {
        let (skipped, uptime_s) = skip(headers, &line[start..]);
        let end = headers.torn.find_at(line, start + skipped).map_or(line.len(), |m| m.start());
        let body = &line[start + skipped..end];
        // What follows a program's name in the same line is that program's text, time stamps and all.
        *program = program.or_else(|| named_program(headers, body));
        found.push(Segment { body, program: *program, uptime_s });
        if end >= line.len() {
            return;
        }
        start = end;
    }
}

/// Length of the header, and the seconds since boot in it.
fn skip(headers: &Headers, line: &[u8]) -> (usize, Option<u64>) {
    let mut at = line.iter().take_while(|b| b.is_ascii_whitespace()).count();
    let mut uptime_s = None;
    for _ in 0..MAX_PIECES {
        let rest = &line[at..];
        let Some(piece) = headers.piece.find(rest).filter(|piece| !piece.is_empty()) else { break };
        uptime_s = uptime_s.or_else(|| uptime(headers, rest));
        at += piece.end();
    }
    (at, uptime_s)
}

fn uptime(headers: &Headers, rest: &[u8]) -> Option<u64> {
    let captures = headers.uptime.captures(rest)?;
    let number =
        |group| captures.get(group).and_then(|m| std::str::from_utf8(m.as_bytes()).ok()?.parse::<u64>().ok());
    number(1).or_else(|| number(2).map(|microseconds| microseconds / 1_000_000))
}

fn named_program<'a>(headers: &Headers, body: &'a [u8]) -> Option<&'a [u8]> {
    let captures = headers.program.captures(body)?;
    captures.get(1).or_else(|| captures.get(2)).map(|name| name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(line: &str) -> Vec<(String, Option<String>)> {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        segments(&Headers::new().unwrap(), line.as_bytes())
            .iter()
            .map(|s| (text(s.body), s.program.map(text)))
            .collect()
    }

    #[test]
    fn the_message_is_found_behind_every_usual_header() {
        for header in [
            "",
            "[   12.345678] ",
            "[...] ",
            "<4>[   12.345678] ",
            "4,1234,56789012,-;",
            "4,1234,56789012,c,caller=T12;",
            "kern  :warn  : ",
            "kern  :err   : 2025-01-21T04:41:44,283390+00:00 ",
            "kern  :warn  : [Sun Feb 23 16:24:18 2025] ",
            "[Sun Feb  2 16:24:18 2025] ",
            "Aug 17 06:18:01 host-1 kernel: ",
            "Aug 17 06:18:01 host-1 kernel: [  123.456789] ",
            "2025-02-23T16:24:18.123456+01:00 host-1 kernel: [  123.456789] ",
            "2025-02-23T16:24:18Z host.example kernel: ",
            "2025-02-23T16:24:18+0000 host kernel: ",
            "Sun 2025-02-23 16:24:18 UTC host kernel: ",
            "1740327858.123456 host kernel: ",
            "[   12.345678] host kernel: ",
            "<4>1 2025-02-23T16:24:18.123456Z host kernel - - - ",
            "kernel: Jan 21 11:18:36 kernel: ",
            "[   12.345678][ T1234] ",
            "\t",
        ] {
            let found = bodies(&format!("{header}NVRM: something"));
            assert_eq!(found, [("NVRM: something".to_owned(), None)], "behind {header:?}");
        }
    }

    #[test]
    fn a_program_is_not_the_kernel() {
        for line in [
            "Aug 17 06:18:01 host sshd[12]: NVRM: x",
            "<30>[   13.2] systemd[1]: NVRM: x",
            "Aug 17 06:18:01 host sudo:  bob : COMMAND=/bin/grep NVRM: x [   12.345678] NVRM: y",
            "[   12.345678] audit: type=1400 NVRM: x",
        ] {
            assert!(bodies(line).iter().all(|(_, program)| program.is_some()), "{line}");
        }
    }

    #[test]
    fn a_line_written_into_another_is_a_segment_of_its_own() {
        let found = bodies("[    1.000001] usb 1-1: new[    1.000002] NVRM: x\nNVRM: y");
        let found: Vec<&str> = found.iter().map(|(body, _)| body.as_str()).collect();
        assert_eq!(found, ["usb 1-1: new", "NVRM: x", "NVRM: y"]);
        // The kernel writes a line end inside a record as \\x0a; a program cannot leave its line that way.
        let found = bodies("3,1,2,-;NVRM: x\\x0a   NVRM: y");
        assert_eq!(found, [("NVRM: x".to_owned(), None), ("NVRM: y".to_owned(), None)]);
        assert!(bodies("30,1,2,-;sshd[7]: x\\x0aNVRM: y").iter().all(|(_, program)| program.is_some()));
    }
}
