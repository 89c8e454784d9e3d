//! `whetstone-agent watch`: looks at the blade and says what changes, on standard output.

use std::io::Write;

use whetstone_agent::watch::{Event, What, watch};

use super::{Places, signals};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    places: Places,
    /// One JSON document per line
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let options = args.places.options()?;
    let (stop, stopped) = signals()?;
    watch(&options, stopped, |event| {
        let line = if args.json { serde_json::to_string(&event).unwrap_or_default() } else { words(&event) };
        let mut out = std::io::stdout();
        // Whoever read this is gone: there is nobody to watch for.
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            let _ = stop.send(());
        }
    });
    Ok(())
}

fn words(event: &Event) -> String {
    let at =
        jiff::Timestamp::from_millisecond(event.at_ms).map_or_else(|_| "?".to_owned(), |at| at.to_string());
    let (word, finding) = match &event.what {
        What::Started { gpus, simulated } => {
            let sim = if *simulated { ", simulated" } else { "" };
            return format!("{at} watching, {gpus} GPUs{sim}");
        }
        What::Stopped => return format!("{at} stopped"),
        What::Appeared { finding } => ("appeared", finding),
        What::Changed { finding } => ("changed", finding),
        What::Cleared { finding } => ("cleared", finding),
        What::Kernel { finding, .. } => ("kernel", finding),
        What::KernelGap { why } => return format!("{at} kernel log: {why}"),
    };
    let device = finding.device.as_ref().map_or("–", |device| device.as_str());
    format!("{at} {word} {} {} {device}: {}", finding.severity.as_str(), finding.code, finding.detail)
}
