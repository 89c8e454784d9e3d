//! `whet quarantine`, `release`, `retire`: what a person wants of a blade, written into its object. The operator acts on it.

use std::process::ExitCode;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use whetstone_api::Blade;

use super::access::{Access, Site, checked_blade};
use super::failure::{Failure, OrExit as _};
use super::{print_json, say, wait_for};
use crate::{as_called, input_error};

/// Lengths that the CRD allows.
const MAX_REASON: usize = 300;
const MAX_BY: usize = 100;
/// Times that a change is made again because somebody else changed the object meanwhile.
const TRIES: usize = 5;
/// What was repaired, in a person's words.
const REPAIRED: &str = "whetstone.dev/repaired";

#[derive(clap::Args)]
#[command(after_help = "Example:\n  whet quarantine b-003 --reason 'smells of smoke'")]
pub struct QuarantineArgs {
    /// Name or serial
    #[arg(value_name = "BLADE")]
    blade: String,
    /// Why, one line
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who asks for it [default: the user's name]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Args)]
#[command(
    after_help = "A person's quarantine is taken away, and a blade that is withheld is burned in: no quarantine ends without that.\n\n\
                        Example:\n  whet release b-003 --repaired 'baseboard replaced, SN 1655123000099'"
)]
pub struct ReleaseArgs {
    /// Name or serial
    #[arg(value_name = "BLADE")]
    blade: String,
    /// What was repaired: the blade is burned in again in any case
    #[arg(long, value_name = "TEXT")]
    repaired: Option<String>,
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Args)]
#[command(
    after_help = "Its history stays. A blade in service is drained first.\n\nExample:\n  whet retire b-003"
)]
pub struct RetireArgs {
    /// Name or serial
    #[arg(value_name = "BLADE")]
    blade: String,
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: Access,
}

/// One line, not empty, within the limit.
fn line(flag: &str, text: &str, most: usize) -> anyhow::Result<String> {
    let text = text.trim();
    let length = text.chars().count();
    if text.is_empty() || length > most || text.chars().any(char::is_control) {
        return Err(input_error(format!("{flag}: one line of 1 to {most} characters ({length} given)")));
    }
    Ok(text.to_owned())
}

pub fn quarantine(args: QuarantineArgs) -> anyhow::Result<ExitCode> {
    checked_blade(&args.blade)?;
    let reason = line("--reason", &args.reason, MAX_REASON)?;
    let by = match &args.by {
        Some(by) => Some(line("--by", by, MAX_BY)?),
        None => ["USER", "LOGNAME"]
            .iter()
            .find_map(|name| std::env::var(name).ok())
            .filter(|by| !by.is_empty() && by.len() <= MAX_BY && !by.chars().any(char::is_control)),
    };
    change(&args.access, &args.blade, args.json, |_| {
        let said = format!("will be withheld: {reason}; `whet release` ends it");
        Ok((json!({"spec": {"quarantine": {"reason": reason, "by": by}}}), said))
    })
}

pub fn release(args: ReleaseArgs) -> anyhow::Result<ExitCode> {
    checked_blade(&args.blade)?;
    let repaired = args.repaired.as_deref().map(|text| line("--repaired", text, MAX_REASON)).transpose()?;
    change(&args.access, &args.blade, args.json, |blade| released(blade, repaired.as_deref()))
}

pub fn retire(args: RetireArgs) -> anyhow::Result<ExitCode> {
    checked_blade(&args.blade)?;
    change(&args.access, &args.blade, args.json, |blade| {
        if blade.spec.retired {
            return Err(input_error(format!("{} is retired already", name(blade))));
        }
        Ok((json!({"spec": {"retired": true}}), "will be retired; its history stays".to_owned()))
    })
}

/// The change that releases a blade, and what follows from it.
fn released(blade: &Blade, repaired: Option<&str>) -> anyhow::Result<(Value, String)> {
    let phase = blade.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("New");
    let by_person = blade.spec.quarantine.is_some();
    let withheld = matches!(phase, "Quarantined" | "Repairing");
    if !by_person && !withheld && repaired.is_none() {
        return Err(input_error(format!("{} is {phase}: there is nothing to release", name(blade))));
    }
    if blade.spec.retired {
        return Err(input_error(format!("{} is retired", name(blade))));
    }
    let mut patch = json!({"spec": {}});
    if by_person {
        patch["spec"]["quarantine"] = Value::Null;
    }
    if let Some(text) = repaired {
        patch["metadata"] = json!({"annotations": {REPAIRED: text}});
    }
    // A fault may have withheld it before a person did, and a drain may end in a quarantine for a fault: without a wish for
    // a burn-in it would stay there. Where the person's was the only reason, the burn-in comes in any case.
    let burn_in = withheld || repaired.is_some() || phase == "Draining";
    if burn_in {
        patch["spec"]["retest"] = json!(blade.spec.retest + 1);
    }
    let taken = if by_person { "its quarantine is taken away; " } else { "" };
    let then = match burn_in {
        true => {
            "a burn-in is asked for, and it is released if it passes (`whet explain` says what it waits for)"
                .to_owned()
        }
        false => format!(
            "it is {phase}, and if it was withheld meanwhile it goes through burn-in before it serves"
        ),
    };
    Ok((patch, format!("{taken}{then}")))
}

fn name(blade: &Blade) -> &str {
    blade.metadata.name.as_deref().unwrap_or("?")
}

/// Changes a blade's object as it was read: if somebody else changed it meanwhile, it is looked at again.
fn change(
    access: &Access,
    wanted: &str,
    json: bool,
    decide: impl Fn(&Blade) -> anyhow::Result<(Value, String)>,
) -> anyhow::Result<ExitCode> {
    wait_for(async {
        let site = access.connect().await?;
        let mut tries = 0;
        let (blade, said) = loop {
            let blade = site.blade(wanted).await?;
            let (patch, said) = decide(&blade)?;
            match write(&site, &blade, patch).await {
                Ok(blade) => break (blade, said),
                Err(kube::Error::Api(status)) if status.reason == "Conflict" && tries < TRIES => tries += 1,
                Err(error) => {
                    let failure: Failure = site.failure(&format!("blade {}", name(&blade)), error);
                    return Err(failure).or_exit();
                }
            }
        };
        if json {
            print_json(&json!({
                "blade": name(&blade), "serial": blade.spec.serial, "quarantine": blade.spec.quarantine,
                "retest": blade.spec.retest, "retired": blade.spec.retired, "said": said,
            }))?;
        } else {
            say(&format!("{}: {}\n", name(&blade), as_called(&said)))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn write(site: &Site, blade: &Blade, mut patch: Value) -> Result<Blade, kube::Error> {
    patch["metadata"]["resourceVersion"] = json!(blade.metadata.resource_version);
    let params = PatchParams { field_manager: Some("whet".into()), ..PatchParams::default() };
    site.all::<Blade>().patch(name(blade), &params, &Patch::Merge(patch)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blade(phase: &str, by_person: bool) -> Blade {
        let mut blade = Blade::new("b-003", whetstone_api::BladeSpec { retest: 4, ..Default::default() });
        blade.status = Some(whetstone_api::BladeStatus { phase: Some(phase.into()), ..Default::default() });
        blade.spec.quarantine =
            by_person.then(|| whetstone_api::QuarantineSpec { reason: "r".into(), by: None });
        blade
    }

    #[test]
    fn a_persons_quarantine_is_taken_away_and_what_is_withheld_needs_a_burn_in() {
        // A person's may lie on top of a fault's: without the wish nothing would come.
        for phase in ["Quarantined", "Repairing", "Draining"] {
            let (patch, said) = released(&blade(phase, true), None).unwrap();
            assert_eq!(patch, json!({"spec": {"quarantine": null, "retest": 5}}));
            assert!(said.starts_with("its quarantine is taken away; a burn-in is asked for"), "{said}");
        }
        let (patch, said) = released(&blade("Quarantined", false), None).unwrap();
        assert_eq!(patch, json!({"spec": {"retest": 5}}));
        assert!(said.starts_with("a burn-in is asked for"), "{said}");
        // Taken back before it took effect: no burn-in takes it out of service for that, or ends its sanitising.
        for phase in ["InService", "Ready", "Sanitising"] {
            let (patch, said) = released(&blade(phase, true), None).unwrap();
            assert_eq!(patch, json!({"spec": {"quarantine": null}}));
            assert!(said.contains(phase) && !said.contains("asked for"), "{said}");
        }
        let (patch, _) = released(&blade("Quarantined", true), Some("new board")).unwrap();
        assert_eq!(
            patch,
            json!({"spec": {"quarantine": null, "retest": 5}, "metadata": {"annotations": {REPAIRED: "new board"}}})
        );
        let (patch, _) = released(&blade("Ready", false), Some("new fan")).unwrap();
        assert_eq!(patch["spec"], json!({"retest": 5}));
    }

    #[test]
    fn what_is_not_withheld_is_not_released() {
        for phase in ["Ready", "InService", "Draining", "Expected", "New"] {
            let error = released(&blade(phase, false), None).unwrap_err();
            assert!(error.is::<crate::InputError>() && error.to_string().contains(phase), "{error}");
        }
    }

    #[test]
    fn reasons_are_one_line_within_the_limit() {
        assert_eq!(line("--reason", " smoke ", 300).unwrap(), "smoke");
        for bad in ["", "  ", "a\nb", &"x".repeat(301)] {
            assert!(line("--reason", bad, 300).is_err(), "{bad:?}");
        }
    }
}
