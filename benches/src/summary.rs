//! What a person reads at the end.

use crate::accuracy::{judge, together};
use crate::harness::{Metric, Outcome, Target};
use crate::results::{Results, Verdict, compare, describe, significant, table};

/// Every metric, its trust, its target; what was skipped and why.
pub(crate) fn tables(results: &Results) -> String {
    let state = &results.state;
    let modified = if state.git_modified { ", modified" } else { "" };
    let mut text = format!(
        "{}\nLinux {}, governor {}, load {}, revision {}{modified}\n\n",
        describe(&results.machine),
        state.kernel,
        state.governor.as_deref().unwrap_or("unknown"),
        state.load.map_or_else(|| "unknown".to_owned(), |load| load.to_string()),
        state.git_revision.as_deref().unwrap_or("unknown"),
    );
    let head = ["", "value", "95 % interval", "noise floor", "target", ""];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    // Some have a table of their own.
    let elsewhere =
        |name: &str| [judge::FAMILY, together::PAIR].iter().any(|one| name.starts_with(one));
    let metrics = results.metrics().filter(|(_, metric)| !elsewhere(&metric.name));
    rows.extend(metrics.map(|(outcome, metric)| row(outcome, metric)));
    text.push_str(&table(&rows, 1));
    for outcome in &results.outcomes {
        text.push_str(&judge::rows(outcome).unwrap_or_default());
        text.push_str(&together::rows(outcome).unwrap_or_default());
        for skipped in &outcome.skipped {
            text.push_str(&format!(
                "skipped, {}: {}: {}\n",
                outcome.category, skipped.what, skipped.why
            ));
        }
        if let Some(failure) = &outcome.failure {
            text.push_str(&format!("failed, {}: {failure}\n", outcome.category));
        }
    }
    let times: Vec<String> = results
        .outcomes
        .iter()
        .map(|outcome| format!("{} {:.0} s", outcome.category, outcome.seconds))
        .collect();
    text.push_str(&format!("took: {}\n", times.join(", ")));
    text
}

fn row(outcome: &Outcome, metric: &Metric) -> Vec<String> {
    let unit = &metric.unit;
    let interval =
        metric.interval.map(|(low, high)| format!("{} … {}", significant(low), significant(high)));
    let noise = metric
        .noise
        .filter(|noise| noise.is_finite())
        .map(|noise| format!("± {}", significant(noise)));
    let target = metric.target.map(|Target { below, asked, .. }| match asked {
        Some(asked) => {
            format!("< {} {unit} (asked: {})", significant(below), significant(asked))
        }
        None => format!("< {} {unit}", significant(below)),
    });
    let verdict = match (metric.target, metric.missed_by()) {
        (Some(target), Some(by)) => miss(metric, target, by),
        (Some(target), None) if target.or_noise && metric.inside_noise() => {
            "met: inside the noise".to_owned()
        }
        (Some(_), None) => "met".to_owned(),
        (None, _) if metric.inside_noise() => "inside the noise".to_owned(),
        (None, _) => String::new(),
    };
    vec![
        format!("{}: {}", outcome.category, metric.name),
        format!("{} {unit}", significant(metric.value)),
        interval.unwrap_or_default(),
        noise.unwrap_or_default(),
        target.unwrap_or_default(),
        verdict,
    ]
}

fn miss(metric: &Metric, target: Target, by: f64) -> String {
    match metric.noise {
        Some(noise) if target.or_noise && target.asked.is_some_and(|asked| noise >= asked) => {
            format!("UNKNOWN: the noise of ± {} {} hides it", significant(noise), metric.unit)
        }
        // Met but for what its interval cannot rule out.
        _ if target.or_noise && (by < 0.0 || metric.inside_noise()) => {
            let high = metric.interval.map_or(f64::NAN, |(_, high)| high);
            format!("UNKNOWN: it may be as much as {} {}", significant(high), metric.unit)
        }
        _ => format!("MISSED by {} {}", significant(by), metric.unit),
    }
}

/// Says each missed target and each failure; `true` if there are any.
pub(crate) fn missed(results: &Results) -> bool {
    let mut any = false;
    for (outcome, metric) in results.metrics() {
        if let (Some(by), Some(target)) = (metric.missed_by(), metric.target) {
            any = true;
            eprintln!(
                "target of {}: {}, {} {unit} where < {} {unit} is wanted: {}",
                outcome.category,
                metric.name,
                significant(metric.value),
                significant(target.below),
                miss(metric, target, by),
                unit = metric.unit,
            );
        }
    }
    any || results.outcomes.iter().any(|outcome| outcome.failure.is_some())
}

/// Prints better, same, worse; `true` if anything got worse.
pub(crate) fn comparison(before: &Results, after: &Results) -> bool {
    let compared = compare(before, after);
    if before.state.kernel != after.state.kernel {
        eprintln!("note: the baseline was taken on Linux {}", before.state.kernel);
    }
    // What else runs moves every time here, and is in neither run's own noise.
    let [then, now] = [before, after].map(|results| {
        results.state.load.map_or_else(|| "unknown".to_owned(), |load| load.to_string())
    });
    eprintln!("note: the load was {then} before the baseline's run, and {now} before this one");
    let head = ["against the baseline", "before", "now", "", ""];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(compared.metrics.iter().map(|one| {
        let verdict = match one.verdict {
            Verdict::Better => "better",
            Verdict::Same => "same",
            Verdict::Worse => "WORSE",
        };
        let confidence = one.confidence.filter(|_| one.verdict != Verdict::Same);
        vec![
            one.name.clone(),
            format!("{} {}", significant(one.before), one.unit),
            format!("{} {}", significant(one.after), one.unit),
            verdict.to_owned(),
            confidence.map(|c| format!("{:.1} % sure", c * 100.0)).unwrap_or_default(),
        ]
    }));
    // Standard output may be a document.
    eprint!("\n{}", table(&rows, 1));
    for note in &compared.notes {
        eprintln!("{note}");
    }
    compared.metrics.iter().any(|one| one.verdict == Verdict::Worse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_is_not_said_to_be_missed() {
        let target = Target { below: 5.0, asked: Some(5.0), or_noise: true };
        let said = |value, noise, interval| {
            let metric = Metric { interval: Some(interval), ..Metric::exact("added", "%", value) };
            let metric = metric.with_noise(noise).against_nothing().with_target(target);
            metric.missed_by().map(|by| miss(&metric, target, by))
        };
        assert_eq!(said(4.0, 0.5, (3.0, 4.5)), None);
        let unknown = "UNKNOWN: it may be as much as 6.00 %";
        assert_eq!(said(4.0, 0.5, (1.0, 6.0)).as_deref(), Some(unknown));
        let hidden = "UNKNOWN: the noise of ± 7.00 % hides it";
        assert_eq!(said(4.0, 7.0, (1.0, 6.0)).as_deref(), Some(hidden));
        assert_eq!(said(6.0, 0.5, (5.0, 7.0)).as_deref(), Some("MISSED by 1.00 %"));
    }
}
