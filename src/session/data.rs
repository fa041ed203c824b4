//! What a session holds.

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};

use super::{
    FieldsError,
    fields::{self, Changes, Class, Fields, decode_value, encode_value},
};

mod sealed {
    pub trait Sealed {}
}

/// What a [`Session`](super::Session) can hold: any type that is `Serialize`, `DeserializeOwned` and
/// `Default`, and [`SessionMap`].
///
/// The fields of a struct (or entries of a map with text keys) are stored one by one: requests that
/// change different fields at the same time both keep what they wrote, and several structs may share a
/// session, each with its own fields. A map sees all fields, so its values have to fit all of them. What
/// is no struct and no map is stored as a whole.
///
/// A field whose type has changed fits no more: the session then counts as none, and the first write
/// begins another in its place. Give such a change a [`Policy::with_schema`](super::Policy::with_schema).
///
/// A field that is not there yet, because the type has grown, is what serde makes of a missing field,
/// or as in the type's default.
pub trait SessionData: sealed::Sealed + Default + Send + 'static {
    #[doc(hidden)]
    fn encode(&self) -> Result<Encoded, FieldsError>;
    #[doc(hidden)]
    fn decode(fields: &Encoded) -> Result<Self, FieldsError>;
}

/// The fields of a session.
#[doc(hidden)]
#[derive(Clone)]
pub struct Encoded(pub(super) Fields);

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encoded(..)")
    }
}

impl<T: Serialize + DeserializeOwned + Default + Send + 'static> sealed::Sealed for T {}

impl<T: Serialize + DeserializeOwned + Default + Send + 'static> SessionData for T {
    fn encode(&self) -> Result<Encoded, FieldsError> {
        fields::encode(self).map(Encoded)
    }

    fn decode(fields: &Encoded) -> Result<Self, FieldsError> {
        fields::decode(&fields.0)
    }
}

/// Session data by names that are chosen while the service runs, each value of its own type.
///
/// # Examples
///
/// ```
/// use tower_keep::session::SessionMap;
///
/// let mut map = SessionMap::default();
/// map.insert("theme", "dark")?;
/// map.insert("visits", &3)?;
///
/// assert_eq!(map.get::<u32>("visits")?, Some(3));
/// assert_eq!(map.take::<String>("theme")?.as_deref(), Some("dark"));
/// assert_eq!(map.names().collect::<Vec<_>>(), ["visits"]);
/// # Ok::<_, tower_keep::session::FieldsError>(())
/// ```
#[derive(Clone, Default)]
pub struct SessionMap(Fields);

impl SessionMap {
    pub(super) const fn from_fields(fields: Fields) -> Self {
        Self(fields)
    }

    pub(super) fn into_fields(self) -> Fields {
        self.0
    }

    /// The value of this name.
    ///
    /// # Errors
    ///
    /// If it is no `V`.
    pub fn get<V: DeserializeOwned>(&self, name: &str) -> Result<Option<V>, FieldsError> {
        self.0.get(Class::Data, name).map(decode_value).transpose()
    }

    /// Whether there is a value of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.get(Class::Data, name).is_some()
    }

    /// Sets the value of this name.
    ///
    /// # Errors
    ///
    /// If the value cannot be written.
    pub fn insert<V: Serialize + ?Sized>(
        &mut self,
        name: &str,
        value: &V,
    ) -> Result<(), FieldsError> {
        let mut change = Changes::new();
        change.set(Class::Data, name, encode_value(value)?);
        self.0 = change.apply(&self.0);
        Ok(())
    }

    /// Removes the value of this name, and says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let had = self.contains(name);
        let mut change = Changes::new();
        change.unset(Class::Data, name);
        self.0 = change.apply(&self.0);
        had
    }

    /// Removes the value of this name and returns it.
    ///
    /// # Errors
    ///
    /// If it is no `V`; it then stays.
    pub fn take<V: DeserializeOwned>(&mut self, name: &str) -> Result<Option<V>, FieldsError> {
        let value = self.get(name)?;
        self.remove(name);
        Ok(value)
    }

    /// The names of all values, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter(Class::Data).map(|(name, _)| name)
    }
}

impl sealed::Sealed for SessionMap {}

impl SessionData for SessionMap {
    fn encode(&self) -> Result<Encoded, FieldsError> {
        Ok(Encoded(self.0.clone()))
    }

    fn decode(fields: &Encoded) -> Result<Self, FieldsError> {
        Ok(Self(fields.0.clone()))
    }
}

impl fmt::Debug for SessionMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
