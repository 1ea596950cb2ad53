//! The settings that every strategy of this crate has in addition to its own: the layers around it.

use std::sync::Arc;
use std::time::Duration;

use rpc_core::balance::LoadBalancer;
use rpc_core::plugin::{PluginError, Settings};

use crate::{Eject, Ejection, Prefer, SlowStart, Subset};

const SLOW_START_MS: &str = "slow_start_ms";
const EJECT_AFTER: &str = "eject_after";
const EJECT_MS: &str = "eject_ms";
const EJECT_MAX_MS: &str = "eject_max_ms";
const EJECT_MAX_PERCENT: &str = "eject_max_percent";
const ZONE: &str = "zone";
const META: &str = "meta";
const LIVE_MIN_PERCENT: &str = "live_min_percent";

const KEYS: [&str; 8] = [
    SLOW_START_MS,
    EJECT_AFTER,
    EJECT_MS,
    EJECT_MAX_MS,
    EJECT_MAX_PERCENT,
    ZONE,
    META,
    LIVE_MIN_PERCENT,
];

/// Builds the strategy with `make` from the settings named `own`, inside the layers that the other settings
/// ask for. The subset is the outermost, so that it sees which instances are ejected; slow start is the
/// innermost, so that it sees only instances in use.
pub(crate) fn build<B: LoadBalancer>(
    settings: &Settings,
    own: &[&str],
    make: impl FnOnce(&Settings) -> Result<B, PluginError>,
) -> Result<Arc<dyn LoadBalancer>, PluginError> {
    settings.only(&[own, &KEYS].concat())?;
    let mut balancer: Arc<dyn LoadBalancer> = Arc::new(make(settings)?);
    if let Some(time) = slow_start(settings)? {
        balancer = Arc::new(SlowStart::new(balancer, time));
    }
    if let Some(ejection) = ejection(settings)? {
        balancer = Arc::new(Eject::new(balancer, ejection));
    }
    if let Some(subset) = subset(settings)? {
        let percent = percent(settings, LIVE_MIN_PERCENT, 50)?;
        balancer = Arc::new(Prefer::new(balancer, subset).live_min_percent(percent));
    }
    Ok(balancer)
}

fn slow_start(settings: &Settings) -> Result<Option<Duration>, PluginError> {
    let ms = settings.parse(SLOW_START_MS, 0)?;
    Ok((ms > 0).then(|| Duration::from_millis(ms)))
}

fn ejection(settings: &Settings) -> Result<Option<Ejection>, PluginError> {
    needs(
        settings,
        &[EJECT_MS, EJECT_MAX_MS, EJECT_MAX_PERCENT],
        &[EJECT_AFTER],
    )?;
    let after = settings.parse(EJECT_AFTER, 0)?;
    let usual = Ejection::default();
    let ms = |key: &str, usual: Duration| {
        let usual = u64::try_from(usual.as_millis()).unwrap_or(u64::MAX);
        settings.parse(key, usual).map(Duration::from_millis)
    };
    let ejection = Ejection {
        after,
        time: ms(EJECT_MS, usual.time)?,
        time_max: ms(EJECT_MAX_MS, usual.time_max)?,
        share_max_percent: percent(settings, EJECT_MAX_PERCENT, usual.share_max_percent)?,
    };
    if ejection.time > ejection.time_max {
        return Err(PluginError::Setting {
            key: EJECT_MS.to_owned(),
            reason: format!(
                "{:?} is more than `{EJECT_MAX_MS}`, {:?}",
                ejection.time, ejection.time_max
            ),
        });
    }
    Ok((after > 0).then_some(ejection))
}

fn subset(settings: &Settings) -> Result<Option<Subset>, PluginError> {
    needs(settings, &[LIVE_MIN_PERCENT], &[ZONE, META])?;
    let bad = |key: &str, reason: String| {
        let key = key.to_owned();
        Err(PluginError::Setting { key, reason })
    };
    match (settings.text(ZONE), settings.text(META)) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => bad(META, format!("`{ZONE}` is set too; expected one of them")),
        (Some(""), None) => bad(ZONE, "``: expected the zone's name".to_owned()),
        (Some(zone), None) => Ok(Some(Subset::Zone(zone.to_owned()))),
        (None, Some(pair)) => match pair.split_once(':') {
            Some((key, value)) => Ok(Some(Subset::Meta(key.to_owned(), value.to_owned()))),
            None => bad(META, format!("`{pair}`: expected `key:value`")),
        },
    }
}

fn percent(settings: &Settings, key: &str, usual: u32) -> Result<u32, PluginError> {
    match settings.parse(key, usual)? {
        percent @ 0..=100 => Ok(percent),
        percent => Err(PluginError::Setting {
            key: key.to_owned(),
            reason: format!("`{percent}`: expected at most 100"),
        }),
    }
}

/// A setting without effect is somebody's mistake.
fn needs(settings: &Settings, keys: &[&str], one_of: &[&str]) -> Result<(), PluginError> {
    if one_of.iter().any(|key| settings.text(key).is_some()) {
        return Ok(());
    }
    match keys.iter().find(|key| settings.text(key).is_some()) {
        None => Ok(()),
        Some(key) => Err(PluginError::Setting {
            key: (*key).to_owned(),
            reason: format!("has no effect without `{}`", one_of.join("` or `")),
        }),
    }
}

#[cfg(test)]
mod tests {
    use rpc_core::balance::LoadBalancerPlugin;

    use super::*;

    fn balancer(pairs: &[(&str, &str)]) -> Result<Arc<dyn LoadBalancer>, PluginError> {
        let settings = pairs.iter().fold(Settings::new(), |settings, (key, value)| {
            settings.with(*key, *value)
        });
        LoadBalancerPlugin::build("p2c", &settings)
    }

    #[test]
    fn settings_lay_the_subset_around_ejection_around_slow_start() {
        let all = [
            ("zone", "a"),
            ("eject_after", "3"),
            ("slow_start_ms", "1000"),
            ("tau_ms", "5"),
        ];
        let text = format!("{:?}", balancer(&all).unwrap());
        let places = ["Prefer", "Zone(\"a\")", "Eject", "SlowStart", "1s", "P2c", "5ms"];
        let found: Vec<_> = places.iter().map(|place| text.find(place)).collect();
        assert!(found.iter().all(Option::is_some), "{text}");
        assert!(text.find("Prefer") < text.find("Eject") && text.find("Eject") < text.find("SlowStart"));
        assert_eq!(format!("{:?}", balancer(&[]).unwrap()), "P2c { tau: 10s }");
    }

    #[test]
    fn settings_that_say_nothing_or_too_much_are_refused() {
        for (pairs, reason) in [
            (&[("eject_ms", "5")][..], "has no effect without `eject_after`"),
            (
                &[("live_min_percent", "5")],
                "has no effect without `zone` or `meta`",
            ),
            (&[("meta", "rack")], "expected `key:value`"),
            (&[("meta", "rack:1"), ("zone", "a")], "expected one of them"),
            (
                &[("eject_after", "1"), ("eject_max_percent", "101")],
                "at most 100",
            ),
            (
                &[("eject_after", "1"), ("eject_ms", "31000")],
                "more than `eject_max_ms`",
            ),
            (&[("tau_ms", "0")], "above 0"),
            (&[("slow_start_ms", "soon")], "`soon`"),
            (
                &[("colour", "red")],
                "known settings: tau_ms, slow_start_ms, eject_after",
            ),
        ] {
            let error = balancer(pairs).unwrap_err().to_string();
            assert!(error.contains(reason), "{pairs:?}: {error}");
        }
    }
}
