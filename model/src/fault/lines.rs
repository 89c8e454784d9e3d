//! Cutting a stream of bytes into lines of bounded length, without reading anything itself.

/// Longest line that is looked at, in bytes; the kernel's own limit is about 1 KiB, syslog's 8 KiB.
pub const MAX_LINE: usize = 8 * 1024;

/// A line without its end (`\n` or `\r\n`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    pub bytes: &'a [u8],
    /// True if the line was longer than the limit; the rest of it was dropped.
    pub cut: bool,
}

/// Takes chunks, gives lines; keeps at most one line of `limit` bytes between chunks.
#[derive(Debug)]
pub struct Splitter {
    limit: usize,
    /// Beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Bytes of the present line beyond the limit were dropped.
    cut: bool,
    /// The present line has begun (it may be empty so far because `limit` is 0).
    open: bool,
}

impl Default for Splitter {
    fn default() -> Self {
        Self::new(MAX_LINE)
    }
}

impl Splitter {
    pub fn new(limit: usize) -> Self {
        Self { limit, partial: Vec::new(), cut: false, open: false }
    }

    /// Gives every line that ends in `chunk` to `each`, which may end the work with an error.
    pub fn push<E>(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(Line<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = chunk;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (piece, after) = (&rest[..end], &rest[end + 1..]);
            if self.open {
                self.keep(piece);
                let result = each(Line { bytes: trimmed(&self.partial), cut: self.cut });
                self.reset();
                result?;
            } else {
                let kept = &piece[..piece.len().min(self.limit)];
                each(Line { bytes: trimmed(kept), cut: kept.len() < piece.len() })?;
            }
            rest = after;
        }
        if !rest.is_empty() {
            self.open = true;
            self.keep(rest);
        }
        Ok(())
    }

    /// The last line, if the stream did not end with a line end.
    pub fn finish<E>(&mut self, mut each: impl FnMut(Line<'_>) -> Result<(), E>) -> Result<(), E> {
        if !self.open {
            return Ok(());
        }
        let result = each(Line { bytes: trimmed(&self.partial), cut: self.cut });
        self.reset();
        result
    }

    /// Forgets a line that has begun, as when the stream was cut off.
    pub fn reset(&mut self) {
        self.partial.clear();
        self.cut = false;
        self.open = false;
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = self.limit.saturating_sub(self.partial.len()).min(piece.len());
        self.partial.extend_from_slice(&piece[..room]);
        self.cut |= room < piece.len();
    }
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn lines(limit: usize, chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = Splitter::new(limit);
        let mut found = Vec::new();
        let mut each = |line: Line<'_>| {
            found.push((line.bytes.to_vec(), line.cut));
            Ok::<(), Infallible>(())
        };
        for chunk in chunks {
            splitter.push(chunk, &mut each).unwrap();
        }
        splitter.finish(&mut each).unwrap();
        found
    }

    #[test]
    fn lines_do_not_depend_on_how_the_stream_is_chunked() {
        let text: &[u8] = b"one\r\n\ntwo longer than the limit\nthree\nend";
        let whole = lines(10, &[text]);
        assert_eq!(
            whole,
            [
                (b"one".to_vec(), false),
                (b"".to_vec(), false),
                (b"two longer".to_vec(), true),
                (b"three".to_vec(), false),
                (b"end".to_vec(), false)
            ]
        );
        for at in 0..text.len() {
            assert_eq!(lines(10, &[&text[..at], &text[at..]]), whole, "cut at {at}");
        }
        assert_eq!(lines(10, &text.iter().map(std::slice::from_ref).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn memory_stays_at_one_line() {
        let mut splitter = Splitter::new(16);
        for _ in 0..1000 {
            splitter.push(&[b'x'; 4096], |_| Ok::<(), Infallible>(())).unwrap();
        }
        assert!(splitter.partial.capacity() <= 4096);
    }
}
