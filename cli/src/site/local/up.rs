//! `whet site up`: step by step, each of them recorded before it can leave anything behind.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kube::config::Kubeconfig;
use serde_json::json;
use whetstone_api::{ExpectedBlade, GatesSpec, Tranche, TrancheSpec};
use whetstone_model::lifecycle::Owner;

use super::folder::{Folder, Found, look};
use super::programs::Programs;
use super::silicon::{self, Silicon};
use super::state::{Blade, Made, MadeKind, Recorded, State};
use super::{KUBECONFIG, Place, agents, cluster, down, objects, operator, others, told_to_stop};
use crate::input_error;
use crate::site::access::{Site, connect};
use crate::site::failure::OrExit as _;
use crate::site::table::now_ms;
use crate::site::tranche::{Token, issue, secret_file, suite};
use crate::site::{print_json, say, wait_for};

/// For simulated silicon, whose kernels run on the host: every GPU test once, small.
const SIMULATED_SUITE: &str = include_str!("../../../../tests/sim/suites/tranche.toml");
/// Name of the tranche.
const TRANCHE: &str = "t-01";
/// Blades to a rack.
const PER_RACK: usize = 4;
/// Until the operator knows the tranche's blades.
const KNOWN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// Tokens are used at once.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

#[derive(clap::Args)]
#[command(
    after_help = "A real Kubernetes, the operator and an agent per simulated blade; all of it below DIR and on loopback.\n\n\
    Examples:\n  whet site up\n  whet site up --blades 16 --seed 7 --nodes 2\n  whet site up --kubeconfig ~/.kube/config"
)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Simulated blades
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=512))]
    blades: u64,
    /// What they are: h100, b200, gb200, … as `whet-sim` has them
    #[arg(long, default_value = "h100")]
    sku: String,
    /// Decides which blades are bad, and with what
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// All of them well
    #[arg(long)]
    healthy: bool,
    /// A blade as described (docs/simulated-silicon.md); may be repeated; healthy ones fill up to --blades
    #[arg(long = "scenario", value_name = "FILE")]
    scenarios: Vec<PathBuf>,
    /// Real kubelets, for the first N blades (needs root)
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100))]
    nodes: u64,
    /// Use this cluster instead of a local one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["nodes", "instance"])]
    kubeconfig: Option<PathBuf>,
    /// Context in --kubeconfig
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    context: Option<String>,
    /// Database of the operator: postgres://… [default: a SQLite file in DIR]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// quick, standard, soak, or a TOML file [default: every GPU test once, in sizes for simulated silicon]
    #[arg(long, value_name = "NAME|FILE")]
    suite: Option<String>,
    /// Who gets the blades that pass: spare, inference, slurm/CLUSTER, kubernetes/CLUSTER [default: nobody]
    #[arg(long)]
    owner: Option<String>,
    /// Blades burned in at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(i64).range(1..=512))]
    concurrency: i64,
    /// Which of the local clusters side by side, 0 to 9 [default: the first that is free]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=9))]
    instance: Option<u32>,
    /// Folder with whetstone-operator, whetstone-agent, whet-sim and whet-local
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
    /// Folder with the simulated libraries
    #[arg(long, value_name = "DIR")]
    sim_libs: Option<PathBuf>,
    /// Fine if the site runs already
    #[arg(long)]
    reuse: bool,
    /// {"dir","kubeconfig","tranche","blades":[…],"seconds",…}
    #[arg(long)]
    json: bool,
}

/// What was checked before anything is started.
struct Plan {
    programs: Programs,
    suite: String,
    suite_text: Option<String>,
    kubeconfig: Option<Kubeconfig>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dir = args.place.path()?;
    let begin = Instant::now();
    if let Some(code) = already(args, &dir)? {
        return Ok(code);
    }
    let plan = check(args)?;
    if let Some(config) = &plan.kubeconfig {
        wait_for(async { others::refuse(&connect(config.clone(), None, None).await.or_exit()?).await })?;
    }
    let folder = Folder::make(&dir)?;
    let mut state = State::fresh(&dir, now_ms())?;
    state.whet_local = plan.programs.local.clone();
    state.save()?;
    let result = wait_for(async {
        tokio::select! {
            result = bring_up(args, plan, &mut state, begin) => result,
            signal = told_to_stop() => Err(signal),
        }
    });
    if let Err(error) = result {
        if state.leaves_anything() {
            eprintln!("{:6.1} s  failed; taking it down", begin.elapsed().as_secs_f64());
        }
        // The log of what failed goes with the folder: the error has its last lines.
        return match wait_for(down::all(&folder, state)).and_then(|()| folder.delete()) {
            Ok(()) => Err(error),
            Err(left) => Err(error.context(format!("and it could not be taken down: {left:#}"))),
        };
    }
    report(args, &state, begin)?;
    Ok(ExitCode::SUCCESS)
}

/// What there is in the folder; an exit code if that settles it.
fn already(args: &Args, dir: &Path) -> anyhow::Result<Option<ExitCode>> {
    let strange =
        || input_error(format!("{}: holds files that are no site's; name another folder", dir.display()));
    match look(dir)? {
        Found::Free => return Ok(None),
        Found::Strange => return Err(strange()),
        Found::Site => {}
    }
    let lock = Folder::open(dir)?;
    let state = State::load(dir)?;
    drop(lock);
    match state {
        Some(state) if state.ready && state.living().next().is_some() => {
            if !args.reuse {
                let how = "`whet site down` ends it, --reuse takes it as it is";
                return Err(input_error(format!("{}: a site runs here already; {how}", dir.display())));
            }
            report(args, &state, Instant::now())?;
            Ok(Some(ExitCode::SUCCESS))
        }
        _ => Err(input_error(format!(
            "{}: what is left of a site is here; `whet site down` clears it away",
            dir.display()
        ))),
    }
}

fn check(args: &Args) -> anyhow::Result<Plan> {
    if args.nodes > args.blades {
        return Err(input_error(format!("--nodes {}: there are {} blades", args.nodes, args.blades)));
    }
    if args.scenarios.len() as u64 > args.blades {
        return Err(input_error(format!("{} scenarios for {} blades", args.scenarios.len(), args.blades)));
    }
    if let Some(owner) = &args.owner {
        owner.parse::<Owner>().map_err(|e| input_error(format!("--owner: {e}")))?;
    }
    let (suite, suite_text) = match args.suite.as_deref() {
        None => ("tranche-sim".to_owned(), Some(SIMULATED_SUITE.to_owned())),
        Some(text) if text.contains(['/', '.']) => suite("", Some(Path::new(text)))?,
        Some(name) => suite(name, None)?,
    };
    let kubeconfig = args.kubeconfig.as_deref().map(|path| {
        let mut config = Kubeconfig::read_from(path)
            .map_err(|e| input_error(format!("--kubeconfig {}: {e}", path.display())))?;
        if let Some(context) = &args.context {
            config.current_context = Some(context.clone());
        }
        Ok::<_, anyhow::Error>(config)
    });
    let kubeconfig = kubeconfig.transpose()?;
    let programs = Programs::find(args.bin.as_deref(), args.sim_libs.as_deref(), kubeconfig.is_none())?;
    Ok(Plan { programs, suite, suite_text, kubeconfig })
}

/// Lines of progress, with the time since the beginning.
struct Steps(Instant);

impl Steps {
    fn done(&self, what: impl std::fmt::Display) {
        eprintln!("{:6.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

async fn bring_up(args: &Args, plan: Plan, state: &mut State, begin: Instant) -> anyhow::Result<()> {
    let steps = Steps(begin);
    let dir = state.dir.clone();
    std::fs::create_dir_all(dir.join("log"))?;
    std::fs::create_dir_all(dir.join("blades"))?;
    let blades = blades_and_cluster(args, &plan, state, &steps).await?;
    let kubeconfig = Kubeconfig::read_from(dir.join(KUBECONFIG)).context("kubeconfig")?;
    let site = connect(kubeconfig, None, Some(dir.clone())).await.or_exit()?;
    let elsewhere = plan.kubeconfig.is_some();
    if elsewhere {
        others::refuse_names(&site, &blades).await?;
    }
    objects::prepare(&site, state).await?;
    steps.done("kinds and admission policies applied");
    let ports = operator::Ports::free()?;
    let identity = elsewhere.then(|| format!("whet-site-{}", state.id));
    let store = args.store.as_deref();
    let process = operator::begin(&plan.programs.operator, &dir, store, &ports, identity.as_deref())?;
    state.change(|state| {
        state.operator_url = ports.url();
        state.operator_http = ports.http();
        state.processes.push(Recorded { name: "operator".into(), process, log: operator::log(&dir) });
    })?;
    make_tranche(args, &plan, &site, state, &blades).await?;
    // There was none before, and nobody else's operator makes any: see `others`.
    let made = |blade: &Silicon| Made { kind: MadeKind::Blade, name: blade.name.clone() };
    state.change(|state| state.made.extend(blades.iter().map(made)))?;
    operator::ready(&dir, process, &ports).await?;
    operator::credentials(&plan.programs.operator, &dir, &ports).await?;
    objects::secret(&site, state, &dir).await?;
    steps.done(format!("operator ready at {}", ports.url()));
    objects::nodes(&site, state).await?;
    let tokens = tokens(&site, &blades).await?;
    for (silicon, token) in blades.iter().zip(&tokens) {
        let process = agents::begin(&plan.programs, &dir, &ports.url(), silicon, &token.token)?;
        let log = agents::log(&dir, &silicon.name);
        state.change(|state| {
            state.processes.push(Recorded { name: agents::name(&silicon.name), process, log });
        })?;
    }
    steps.done(format!("{} agents started", blades.len()));
    seen(&site, state, blades.len()).await?;
    state.change(|state| state.ready = true)?;
    steps.done("`kubectl get blades` answers");
    Ok(())
}

/// Silicon and Kubernetes, at once: neither needs the other.
async fn blades_and_cluster(
    args: &Args,
    plan: &Plan,
    state: &mut State,
    steps: &Steps,
) -> anyhow::Result<Vec<Silicon>> {
    let dir = state.dir.clone();
    let kubelets = args.nodes as usize;
    let wanted = silicon::Wanted {
        sim: &plan.programs.sim,
        site: &dir,
        blades: args.blades as usize,
        sku: &args.sku,
        seed: args.seed,
        healthy: args.healthy,
        scenarios: &args.scenarios,
    };
    let made = async {
        let blades = silicon::make(&wanted).await?;
        steps.done(format!("{} simulated blades made", blades.len()));
        Ok::<_, anyhow::Error>(blades)
    };
    let target = dir.join(KUBECONFIG);
    let up = |nodes: Vec<String>| {
        let (dir, target) = (&dir, &target);
        async move {
            if let Some(config) = &plan.kubeconfig {
                let text = serde_norway::to_string(config)?;
                secret_file(target, text.as_bytes())?;
                return Ok(());
            }
            let program = plan.programs.local.as_deref().context("whet-local")?;
            let wanted = cluster::Wanted { program, site: dir, nodes: &nodes, instance: args.instance };
            let kubeconfig = cluster::up(&wanted).await?;
            let text = std::fs::read(&kubeconfig).with_context(|| kubeconfig.display().to_string())?;
            secret_file(target, &text)?;
            steps.done("Kubernetes ready");
            Ok::<_, anyhow::Error>(())
        }
    };
    let blades = if kubelets == 0 {
        let (blades, cluster) = tokio::join!(made, up(Vec::new()));
        cluster?;
        blades?
    } else {
        // Nodes are called as the blades are, and only silicon says how.
        let blades = made.await?;
        up(blades.iter().take(kubelets).map(|blade| blade.name.clone()).collect()).await?;
        blades
    };
    state.change(|state| {
        state.tranche = TRANCHE.to_owned();
        state.blades = blades
            .iter()
            .enumerate()
            .map(|(i, blade)| Blade {
                name: blade.name.clone(),
                serial: blade.serial.clone(),
                kubelet: i < kubelets,
            })
            .collect();
    })?;
    Ok(blades)
}

async fn make_tranche(
    args: &Args,
    plan: &Plan,
    site: &Site,
    state: &mut State,
    blades: &[Silicon],
) -> anyhow::Result<()> {
    let expected = blades.iter().enumerate().map(|(i, blade)| ExpectedBlade {
        serial: blade.serial.clone(),
        name: Some(blade.name.clone()),
        sku: blade.profile.clone(),
        rack: Some(format!("r-{:02}", i / PER_RACK + 1)),
        slot: Some((i % PER_RACK + 1).to_string()),
        nvlink_domain: None,
    });
    let spec = TrancheSpec {
        blades: expected.collect(),
        suite: plan.suite.clone(),
        suite_text: plan.suite_text.clone(),
        concurrency: args.concurrency,
        power: None,
        gates: GatesSpec::default(),
        retries: 1,
        fpr: 0.01,
        owner: args.owner.clone(),
        paused: false,
        due: None,
    };
    let object = Tranche::new(TRANCHE, spec);
    objects::make(site, state, (MadeKind::Tranche, TRANCHE), &site.all(), &object).await
}

/// A token for each blade, as soon as the operator knows them.
async fn tokens(site: &Site, blades: &[Silicon]) -> anyhow::Result<Vec<Token>> {
    let serials: Vec<String> = blades.iter().map(|blade| blade.serial.clone()).collect();
    let ops = site.ops().await.or_exit()?;
    let until = tokio::time::Instant::now() + KNOWN;
    loop {
        match issue(&ops, &serials, TOKEN_LIFE).await {
            Ok(tokens) if tokens.len() == serials.len() => return Ok(tokens),
            Ok(tokens) => bail!("{} tokens for {} blades", tokens.len(), serials.len()),
            Err(failure) if tokio::time::Instant::now() > until => {
                return Err(anyhow::Error::from(failure).context("the operator does not take up the tranche"));
            }
            Err(failure) if failure.is_not_found() || failure.is_operator_away() => {
                tokio::time::sleep(POLL).await;
            }
            Err(failure) => return Err(failure.into_error()),
        }
    }
}

/// Waits until the cluster shows all blades, and every process still lives.
async fn seen(site: &Site, state: &State, blades: usize) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + KNOWN;
    loop {
        if let Some(gone) = state.processes.iter().find(|recorded| !recorded.process.lives()) {
            bail!("{} ended:{}", gone.name, super::process::last_lines(&gone.log));
        }
        let params = kube::api::ListParams::default().fields(&format!("spec.tranche={TRANCHE}"));
        let known: Vec<whetstone_api::Blade> = site.list(params).await.or_exit()?;
        let shown = known.iter().filter(|blade| blade.status.as_ref().is_some_and(|s| s.phase.is_some()));
        match shown.count() {
            shown if shown >= blades => return Ok(()),
            shown if tokio::time::Instant::now() > until => bail!(
                "the cluster shows {shown} of {blades} blades after {} s:{}",
                KNOWN.as_secs(),
                super::process::last_lines(&operator::log(&state.dir))
            ),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

fn report(args: &Args, state: &State, begin: Instant) -> anyhow::Result<()> {
    let kubeconfig = state.dir.join(KUBECONFIG);
    if args.json {
        return print_json(&json!({
            "dir": state.dir, "kubeconfig": kubeconfig, "operator": state.operator_url,
            "operator_http": state.operator_http, "tranche": state.tranche, "blades": state.blades,
            "seconds": begin.elapsed().as_secs_f64(),
        }));
    }
    let local = state.whet_local.as_deref().and_then(Path::parent).map(|bin| bin.join("kubectl"));
    let kubectl = local.filter(|kubectl| kubectl.is_file());
    let kubectl = kubectl.map_or("kubectl".to_owned(), |kubectl| kubectl.display().to_string());
    let blade = state.blades.first().map_or("BLADE", |blade| blade.name.as_str());
    let (dir, tranche) = (state.dir.display(), &state.tranche);
    let place = match super::default_dir() {
        Some(default) if default == state.dir => String::new(),
        _ => format!(" --dir {dir}"),
    };
    say(&format!(
        "A site with {} simulated blades in {dir}\nlook around:\n  export KUBECONFIG={}\n  {kubectl} get blades\n  \
         whet blades --watch\n  whet explain {blade}\n  whet tranche watch {tranche}\n  \
         whet tranche report {tranche} --out report/\nend it:\n  whet site down{place}\n",
        state.blades.len(),
        kubeconfig.display(),
    ))
}
