//! `whet`: the command line of Whetstone. Exit codes: 0 fine, 2 wrong usage or input, 10 a fault was found,
//! 20 inconclusive, 1 anything else.

mod burnin;
mod classify;
mod device_test;
#[cfg(test)]
mod docs;
mod judge;
mod probe;
mod report;
mod site;
mod thresholds;

use std::process::ExitCode;
use std::sync::OnceLock;

use clap::{Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "whet",
    version,
    about = "Burn in GPU blades and keep the faulty ones out",
    max_term_width = 110
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a burn-in suite on this machine and write a signed report
    Burnin(burnin::Args),
    /// Verify, show or redraw the bundle of a run
    Report(report::Args),
    /// Find slow or odd devices among the samples of many blades
    Judge(judge::Args),
    /// Say what the lines of a kernel log mean
    Classify(classify::Args),
    /// What this blade is and how it feels now
    Probe(probe::Args),
    /// Show the thresholds, or check a threshold file for slips
    Thresholds(thresholds::Args),
    /// A whole site on this machine: a real Kubernetes, the operator, simulated blades
    Site(site::local::Args),
    #[command(flatten)]
    OfSite(site::Verb),
    /// One device test in this process: request on stdin, events on stdout (the runner calls it)
    #[command(hide = true)]
    DeviceTest(device_test::Args),
}

/// What `kubectl whet` is: the verbs that speak with a site.
#[derive(Parser)]
#[command(
    name = "kubectl-whet",
    bin_name = "kubectl whet",
    version,
    about = "Whetstone's blades, tranches and burn-ins",
    max_term_width = 110
)]
struct Plugin {
    #[command(subcommand)]
    verb: site::Verb,
}

/// Wrong usage or input: exit code 2, and nothing was changed.
#[derive(Debug)]
pub struct InputError(pub String);

impl std::fmt::Display for InputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InputError {}

/// An [`InputError`] as `anyhow::Error`.
pub fn input_error(what: impl std::fmt::Display) -> anyhow::Error {
    InputError(what.to_string()).into()
}

/// Whether this program was called as kubectl's plugin.
pub fn is_plugin() -> bool {
    static PLUGIN: OnceLock<bool> = OnceLock::new();
    *PLUGIN.get_or_init(|| {
        let name = std::env::args_os().next().unwrap_or_default();
        std::path::Path::new(&name).file_stem().is_some_and(|stem| stem == "kubectl-whet")
    })
}

/// A line on standard error, after the name by which this program was called.
pub fn complain(what: impl std::fmt::Display) {
    let name = if is_plugin() { "kubectl whet" } else { "whet" };
    eprintln!("{name}: {}", as_called(&harmless(&what.to_string())));
}

/// Lines of which a part comes from elsewhere (an object, the apiserver, the operator), with nothing in them that a
/// terminal would obey.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// A sentence that names commands in backquotes, with the names by which this program was called.
pub fn as_called(text: &str) -> std::borrow::Cow<'_, str> {
    if is_plugin() { text_of_plugin(text).into() } else { text.into() }
}

/// `site` is the one verb of a sentence that the plugin does not have.
fn text_of_plugin(text: &str) -> String {
    const HELD: &str = "`\u{0}site";
    text.replace("`whet site", HELD).replace("`whet ", "`kubectl whet ").replace(HELD, "`whet site")
}

/// The examples in the help texts, as they are typed there.
fn as_plugin(command: Command) -> Command {
    let help = command.get_after_help().map(|help| help.to_string().replace("whet ", "kubectl whet "));
    let command = match help {
        Some(help) => command.after_help(help),
        None => command,
    };
    let names: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, as_plugin))
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Burnin(args) => burnin::run(args),
        Verb::Report(args) => report::run(args),
        Verb::Judge(args) => judge::run(args),
        Verb::Classify(args) => classify::run(args),
        Verb::Probe(args) => probe::run(args),
        Verb::Thresholds(args) => thresholds::run(args),
        Verb::Site(args) => site::local::run(args),
        Verb::OfSite(verb) => site::run(verb),
        Verb::DeviceTest(args) => device_test::run(args),
    }
}

fn main() -> ExitCode {
    let result = if is_plugin() {
        let matches = as_plugin(Plugin::command()).get_matches();
        let plugin = Plugin::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
        site::run(plugin.verb)
    } else {
        run(Cli::parse().verb)
    };
    result.unwrap_or_else(|error| {
        complain(format_args!("{error:#}"));
        ExitCode::from(if error.is::<InputError>() { 2 } else { 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::{harmless, text_of_plugin};

    #[test]
    fn commands_in_a_sentence_are_those_that_the_plugin_has() {
        let text = "no blade x (`whet blades` lists them; `whet site up` makes a site)";
        let plugin = "no blade x (`kubectl whet blades` lists them; `whet site up` makes a site)";
        assert_eq!(text_of_plugin(text), plugin);
    }

    #[test]
    fn text_from_elsewhere_keeps_its_lines_and_moves_no_cursor() {
        assert_eq!(harmless("lease of \u{1b}[2J\u{9b}31mann\rx\u{7}\ntäil"), "lease of  [2J 31mann x \ntäil");
    }
}
