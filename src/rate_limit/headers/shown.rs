//! Quotas under the names that responses give them.

use http::HeaderValue;

use crate::{
    number::number,
    quota::{PeriodText, Quota},
    storage::Name,
};

/// A quota under the name that responses give it; made once, when the policy is built.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    // An RFC 9651 String, quotes included.
    pub(super) name: Box<[u8]>,
    pub(super) limit: HeaderValue,
    pub(super) quota: Quota,
}

impl Shown {
    /// The quotas of a policy. A quota that is alone has the policy's name; several are told apart
    /// by their periods (`api/min`, `api/day`), or else by all that they are. So the name stays
    /// when a limit or the tier changes.
    pub(crate) fn of_policy(policy: &Name, quotas: &[Quota]) -> Vec<Self> {
        let period = |quota: &Quota| quota.period().as_micros() as u64;
        quotas
            .iter()
            .map(|quota| {
                let alike = quotas.iter().filter(|other| period(other) == period(quota)).count();
                let name = match (quotas.len(), alike) {
                    (1, _) => policy.as_str().to_owned(),
                    (_, 1) => format!("{}/{}", policy.as_str(), PeriodText(period(quota))),
                    _ => format!("{}/{quota}", policy.as_str()),
                };
                Self::new(&name, *quota)
            })
            .collect()
    }

    fn new(name: &str, quota: Quota) -> Self {
        // RFC 9651 §3.3.3: neither the names of policies nor those of quotas need an escape.
        debug_assert!(name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\'));
        Self {
            name: format!("\"{name}\"").into_bytes().into(),
            limit: number(quota.capacity().into()),
            quota,
        }
    }

    /// The name, for `violated-policies`.
    pub(crate) fn name(&self) -> &str {
        let inside = &self.name[1..self.name.len() - 1];
        std::str::from_utf8(inside).expect("made from a str")
    }

    /// The quota.
    pub(crate) fn quota(&self) -> Quota {
        self.quota
    }
}
