//! Network: content through the loopback interface, and what every physical port counts meanwhile.
//!
//! One machine cannot send through its own ports: what it sends to its own address, the kernel hands over inside. Ports
//! are therefore watched (link, errors), and their throughput is left to a test between two blades.

mod ports;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use whetstone_burnin::protocol::Sink;
use whetstone_burnin::suite::NetworkParams;
use whetstone_model::action::{Action, Severity};
use whetstone_model::evidence::Reading;
use whetstone_model::unit::Unit;

use super::bench::{Bench, MAX_FINDINGS, judge};
use super::dram::lines::{self, Pattern};
use super::pages::{Pages, bytes_of};
use crate::{Context, Done};
use ports::Port;

/// Code of content that did not arrive as it was sent.
const CORRUPT: &str = "loopback-corruption";
/// Bytes that are made, sent, and compared at a time.
const CHUNK: u64 = 256 << 10;
/// A connection inside the machine that says nothing for so long is dead.
const PATIENCE: Duration = Duration::from_millis(500);

pub fn run<S: Sink>(params: &NetworkParams, context: &Context<'_, S>) -> Done {
    work(params, &Bench::new(context), Path::new("/sys"))
}

fn work(params: &NetworkParams, bench: &Bench<'_>, sys: &Path) -> Done {
    let before = ports::physical(sys);
    let loopback =
        Loopback { bench, bytes: params.mib << 20, wrong: AtomicU64::new(0), first: Mutex::new(None) };
    let addresses: [SocketAddr; 2] = [(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()];
    let mut best = None::<f64>;
    let mut gap = None;
    for (address, until) in addresses.into_iter().zip([bench.until(0.6), bench.until(0.95)]) {
        match loopback.exchange(address, until) {
            Ok(rate) => best = Some(best.map_or(rate, |best| best.max(rate))),
            // IPv6 is switched off on many machines: that is a note, not a gap.
            Err(error) if address.is_ipv6() => bench.note(format!("loopback by {}: {error}", address.ip())),
            Err(error) => gap = Some(format!("loopback by {}: {error}", address.ip())),
        }
    }
    if let Some(rate) = best {
        bench.reading(None, "net.loopback.bandwidth", rate, Unit::GBps);
    }
    let flapped = watch(bench, &before, &ports::physical(sys));
    let wrong = loopback.wrong.load(Ordering::Relaxed);
    if wrong > 0 {
        let first = loopback.first.lock().ok().and_then(|first| first.clone());
        return judge(wrong, "wrong 4 KiB blocks", first.as_deref());
    }
    match (flapped, gap) {
        (Some(what), _) => Done::fail(what),
        (None, Some(gap)) => Done::inconclusive(gap),
        (None, None) => Done::pass(),
    }
}

/// Findings from the difference of what the ports counted; the gravest, if one is a fault.
fn watch(bench: &Bench<'_>, before: &[Port], after: &[Port]) -> Option<String> {
    let up: Vec<&Port> = before.iter().filter(|port| port.up).collect();
    if up.is_empty() {
        bench.note("no physical network port is up");
    } else {
        let names: Vec<&str> = up.iter().map(|port| port.name.as_str()).collect();
        let text = "watched, their throughput not measured: that needs a second machine";
        bench.note(format!("network ports up: {} ({text})", names.join(", ")));
    }
    let mut fault = None;
    for port in up {
        if let Some(speed) = port.speed_mbps {
            bench.reading(port.device.clone(), "net.nic.speed", f64::from(speed) / 1000.0, Unit::Gbps);
        }
        let Some(now) = after.iter().find(|now| now.name == port.name) else {
            let detail = format!("{}: the port was there before the test and is gone after it", port.name);
            bench.fault("nic-lost", port.device.clone(), Action::CheckLink, detail.clone());
            fault.get_or_insert(detail);
            continue;
        };
        let flaps = now.carrier_changes.saturating_sub(port.carrier_changes);
        if flaps > 0 || !now.up {
            let state = if now.up { "up" } else { "down" };
            let detail = format!("{}: link changed {flaps} times during the test and is {state}", port.name);
            bench.fault("link-flap", port.device.clone(), Action::CheckLink, detail.clone());
            fault.get_or_insert(detail);
        }
        for (counter, then) in &port.errors {
            let more = now.errors.get(counter).map_or(0, |now| now.saturating_sub(*then));
            if more > 0 {
                let detail = format!("{}: {counter} grew by {more} during the test, from {then}", port.name);
                let reading = Reading::new(format!("net.nic.{counter}"), more as f64, Unit::Count);
                let (code, severity) = ("nic-errors", Severity::Warning);
                bench.finding(code, port.device.clone(), severity, Action::CheckLink, detail, Some(reading));
            }
        }
    }
    fault
}

struct Loopback<'a> {
    bench: &'a Bench<'a>,
    bytes: u64,
    wrong: AtomicU64,
    first: Mutex<Option<String>>,
}

impl Loopback<'_> {
    /// Sends in both directions at once over one connection; gigabytes per second, both together.
    fn exchange(&self, address: SocketAddr, until: Instant) -> io::Result<f64> {
        let listener = TcpListener::bind(address)?;
        let far = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
        let near = listener.accept()?.0;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        let received = AtomicU64::new(0);
        let started = Instant::now();
        let results: Vec<io::Result<()>> = std::thread::scope(|scope| {
            let threads = [
                scope.spawn(|| self.send(&near, 1, until)),
                scope.spawn(|| self.send(&far, 2, until)),
                scope.spawn(|| self.receive(&far, 1, &received)),
                scope.spawn(|| self.receive(&near, 2, &received)),
            ];
            while threads.iter().any(|thread| !thread.is_finished()) {
                let mib = received.load(Ordering::Relaxed) >> 20;
                self.bench.tick(&format!(
                    "loopback {}, {mib} of {} MiB",
                    address.ip(),
                    (2 * self.bytes) >> 20
                ));
                std::thread::park_timeout(Duration::from_millis(100));
            }
            let ended = |thread: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker thread ended early")))
            };
            threads.map(ended).into_iter().collect()
        });
        let took = started.elapsed().as_secs_f64();
        results.into_iter().collect::<io::Result<()>>()?;
        let received = received.load(Ordering::Relaxed);
        if received == 0 {
            return Err(io::Error::other("no time to send anything"));
        }
        Ok(received as f64 / took / 1e9)
    }

    fn key(&self, direction: u64) -> u64 {
        self.bench.seed ^ (0x10 + direction)
    }

    fn send(&self, mut to: &TcpStream, direction: u64, until: Instant) -> io::Result<()> {
        let mut words: Pages<u64> = Pages::new((CHUNK / 8) as usize)?;
        for at in (0..self.bytes).step_by(CHUNK as usize) {
            if Instant::now() >= until {
                break;
            }
            lines::write(Pattern::Random, self.key(direction), &mut words, at, false);
            to.write_all(bytes_of(&mut words))?;
        }
        to.shutdown(std::net::Shutdown::Write)
    }

    fn receive(&self, mut from: &TcpStream, direction: u64, received: &AtomicU64) -> io::Result<()> {
        let mut words: Pages<u64> = Pages::new((CHUNK / 8) as usize)?;
        for at in (0u64..).step_by(CHUNK as usize) {
            if !fill(&mut from, bytes_of(&mut words))? {
                return Ok(());
            }
            received.fetch_add(CHUNK, Ordering::Relaxed);
            self.bench.tap.produced("loopback", bytes_of(&mut words));
            let key = self.key(direction);
            if let Some(block) = lines::first_wrong_block(Pattern::Random, key, &words, at, 0) {
                let wrong = |i: &usize| words[*i] != Pattern::Random.word(key, at + 8 * *i as u64);
                let first = (block..words.len()).find(wrong).unwrap_or(block);
                let (place, got) = (at + 8 * first as u64, words[first]);
                let expected = Pattern::Random.word(key, place);
                let detail = format!(
                    "byte {place} of the stream: expected {expected:#018x}, got {got:#018x}, flipped {:#x}",
                    expected ^ got
                );
                if self.wrong.fetch_add(1, Ordering::Relaxed) < MAX_FINDINGS as u64 {
                    self.bench.fault(CORRUPT, None, Action::DrainAndTest, detail.clone());
                }
                if let Ok(mut first) = self.first.lock() {
                    first.get_or_insert(detail);
                }
            }
        }
        Ok(())
    }
}

/// Reads a whole chunk; false at the end of the stream.
fn fill(from: &mut &TcpStream, bytes: &mut [u8]) -> io::Result<bool> {
    let mut have = 0;
    while have < bytes.len() {
        match from.read(&mut bytes[have..]) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bench::testing::{FlipOne, Rig};
    use whetstone_model::report::TestOutcome;

    const SHORT: NetworkParams = NetworkParams { mib: 2 };

    #[test]
    fn loopback_carries_its_content_and_a_flipped_bit_is_found() {
        let rig = Rig::new(31, Duration::from_secs(60));
        assert_eq!(work(&SHORT, &rig.bench(), Path::new("/nowhere")), Done::pass());
        assert!(rig.readings().iter().any(|r| r.reading.metric == "net.loopback.bandwidth"));
        for seed in 0..10 {
            let rig = Rig::new(31, Duration::from_secs(60));
            let tap = FlipOne::new("loopback", seed, seed);
            let done = work(&SHORT, &rig.tapped(&tap), Path::new("/nowhere"));
            assert_eq!((done.outcome, rig.findings().len()), (TestOutcome::Fail, 1), "{done:?}");
            assert!(rig.findings()[0].detail.contains("of the stream"));
        }
    }

    fn port(name: &str, flaps: u64, crc: u64) -> Port {
        let errors = [("rx_crc_errors".to_owned(), crc)].into();
        Port {
            name: name.into(),
            device: None,
            up: true,
            speed_mbps: Some(200_000),
            carrier_changes: flaps,
            errors,
        }
    }

    #[test]
    fn what_a_port_counts_during_the_test_is_a_finding_and_old_counts_are_not() {
        let rig = Rig::new(1, Duration::from_secs(1));
        assert_eq!(watch(&rig.bench(), &[port("eth0", 3, 7)], &[port("eth0", 3, 7)]), None);
        assert!(rig.findings().is_empty());
        assert_eq!(rig.readings()[0].reading.value, 200.0);

        let fault = watch(&rig.bench(), &[port("eth0", 3, 7)], &[port("eth0", 5, 9)]);
        assert_eq!(fault.unwrap(), "eth0: link changed 2 times during the test and is up");
        let codes: Vec<(String, Severity)> =
            rig.findings().into_iter().map(|f| (f.code, f.severity)).collect();
        let expected =
            [("link-flap".to_owned(), Severity::Fault), ("nic-errors".to_owned(), Severity::Warning)];
        assert_eq!(codes, expected);
        assert!(watch(&rig.bench(), &[port("eth0", 3, 7)], &[]).unwrap().contains("gone"));
    }
}
