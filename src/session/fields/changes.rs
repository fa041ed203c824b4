//! What a request has changed, to be applied to whatever the record has become.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map::Entry},
    fmt,
};

use bytes::{Bytes, BytesMut};

use super::{Class, Field, Fields};

/// Changes of fields, at most one for each.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes(BTreeMap<(Class, Box<str>), Change>);

#[derive(Clone, PartialEq, Eq)]
enum Change {
    Set(Bytes),
    Unset,
    /// Set if there is none.
    Supply(Bytes),
}

impl Changes {
    pub(crate) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// What makes `after` of `before`. Fields that neither has are left alone.
    pub(crate) fn diff(before: &Fields, after: &Fields) -> Self {
        let mut changes = Self::new();
        if before == after {
            return changes;
        }
        for (was, is) in pairs(before, after) {
            match (was, is) {
                (Some(was), Some(is)) if was.value == is.value => {}
                (_, Some(is)) => {
                    changes.set(is.class, is.name, after.0.slice_ref(is.value));
                }
                (Some(was), None) => changes.unset(was.class, was.name),
                (None, None) => {}
            }
        }
        changes
    }

    /// Also writes those fields of `after` that `record` lacks, unless somebody else has by then.
    ///
    /// A type reads what is missing by its own rules, which may change from one release to the next
    /// and differ from its default value: what it has read is fixed with the first change. This alone
    /// is no change.
    #[must_use]
    pub(crate) fn with_missing(mut self, after: &Fields, record: &Fields) -> Self {
        for (has, is) in pairs(record, after) {
            if let (None, Some(is)) = (has, is)
                && is.class == Class::Data
                && let Entry::Vacant(place) = self.0.entry((is.class, is.name.into()))
            {
                place.insert(Change::Supply(after.0.slice_ref(is.value)));
            }
        }
        self
    }

    pub(crate) fn set(&mut self, class: Class, name: impl Into<Box<str>>, value: Bytes) {
        self.0.insert((class, name.into()), Change::Set(value));
    }

    pub(crate) fn unset(&mut self, class: Class, name: impl Into<Box<str>>) {
        self.0.insert((class, name.into()), Change::Unset);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.values().all(|change| matches!(change, Change::Supply(_)))
    }

    /// Adds changes that were made after these.
    pub(crate) fn merge(&mut self, later: Self) {
        for (name, change) in later.0 {
            match (self.0.entry(name), change) {
                (Entry::Occupied(_), Change::Supply(_)) => {}
                (Entry::Occupied(mut place), change) => {
                    place.insert(change);
                }
                (Entry::Vacant(place), change) => {
                    place.insert(change);
                }
            }
        }
    }

    /// The fields with these changes.
    pub(crate) fn apply(&self, fields: &Fields) -> Fields {
        if self.0.is_empty() {
            return fields.clone();
        }
        let changes = self.0.iter().map(|((class, name), change)| {
            let (Change::Set(value) | Change::Supply(value)) = change else {
                return (Field { class: *class, name, value: &[] }, change);
            };
            (Field { class: *class, name, value }, change)
        });
        let room = fields.0.len() + changes.clone().map(|(field, _)| field.room()).sum::<usize>();
        let mut out = BytesMut::with_capacity(room);
        for (old, new) in in_step(fields.all(), changes, |old, (new, _)| order(old, new)) {
            match (old, new) {
                (None, Some((new, Change::Set(_) | Change::Supply(_))))
                | (Some(_), Some((new, Change::Set(_)))) => new.put(&mut out),
                (Some(old), None | Some((_, Change::Supply(_)))) => old.put(&mut out),
                (_, Some((_, Change::Unset))) | (None, None) => {}
            }
        }
        Fields(out.freeze())
    }

    /// The names of the fields that these changes take from `theirs`, if both come from `base`: they
    /// were changed there too, to something else.
    pub(crate) fn overwrites(&self, base: &Fields, theirs: &Fields) -> Vec<String> {
        if base == theirs {
            return Vec::new();
        }
        let overwrites = |class, name: &str, change: &Change| {
            let ours = match change {
                Change::Set(value) => Some(&value[..]),
                Change::Unset => None,
                Change::Supply(_) => return false,
            };
            let theirs = theirs.get(class, name);
            theirs != base.get(class, name) && theirs != ours
        };
        self.0
            .iter()
            .filter(|((class, name), change)| overwrites(*class, name, change))
            .map(|((class, name), _)| match class {
                Class::Data | Class::Flash => name.to_string(),
                Class::Whole => "the whole value".to_owned(),
            })
            .collect()
    }
}

/// Names alone: the values may be secret.
impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changes = self.0.iter().map(|(name, change)| {
            let done = match change {
                Change::Set(_) => "set",
                Change::Unset => "unset",
                Change::Supply(_) => "supply",
            };
            (name, done)
        });
        f.debug_map().entries(changes).finish()
    }
}

/// The fields with those of `default` that they lack; or only with that one.
pub(super) fn completed(fields: &Fields, default: &Fields, only: Option<&str>) -> Fields {
    let mut out = BytesMut::with_capacity(default.0.len() + fields.0.len());
    for (field, default) in pairs(fields, default) {
        let default = default.filter(|field| only.is_none_or(|name| field.name == name));
        if let Some(field) = field.or(default) {
            field.put(&mut out);
        }
    }
    Fields(out.freeze())
}

fn order(left: &Field<'_>, right: &Field<'_>) -> Ordering {
    (left.class, left.name).cmp(&(right.class, right.name))
}

fn pairs<'a>(
    left: &'a Fields,
    right: &'a Fields,
) -> impl Iterator<Item = (Option<Field<'a>>, Option<Field<'a>>)> {
    in_step(left.all(), right.all(), order)
}

/// Walks over two rising rows, and pairs what is equal.
fn in_step<L, R>(
    left: impl Iterator<Item = L>,
    right: impl Iterator<Item = R>,
    order: impl Fn(&L, &R) -> Ordering,
) -> impl Iterator<Item = (Option<L>, Option<R>)> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    std::iter::from_fn(move || {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => order(left, right),
        };
        Some((
            if order.is_le() { left.next() } else { None },
            if order.is_ge() { right.next() } else { None },
        ))
    })
}
