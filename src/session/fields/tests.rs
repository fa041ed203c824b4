use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    net::IpAddr,
};

use proptest::{collection, prelude::*};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::*;

fn names(fields: &Fields) -> Vec<(Class, &str)> {
    fields.all().map(|field| (field.class, field.name)).collect()
}

fn data(names: &[&'static str]) -> Vec<(Class, &'static str)> {
    names.iter().map(|name| (Class::Data, *name)).collect()
}

fn fields(entries: &[(&str, i64)]) -> Fields {
    let mut changes = Changes::new();
    for (name, value) in entries {
        changes.set(Class::Data, *name, encode_value(value).unwrap());
    }
    changes.apply(&Fields::new())
}

fn reread(fields: &Fields) -> Fields {
    Fields::from_bytes(fields.as_bytes().clone()).unwrap()
}

#[track_caller]
fn round_trip<T: Serialize + DeserializeOwned + Default + PartialEq + Debug>(value: T) -> Fields {
    let encoded = encode(&value).unwrap();
    assert_eq!(decode::<T>(&reread(&encoded)).unwrap(), value);
    encoded
}

/// Written as a byte string, as by `serde_bytes`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Blob(Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cart {
    lines: Vec<(u32, String)>,
    voucher: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Rest {
    page: u8,
    #[serde(flatten)]
    others: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
enum Step {
    #[default]
    Begun,
    Paid(u64),
    Sent(u8, String),
    Back {
        reason: String,
        next: Option<Box<Step>>,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Wide {
    blob: Blob,
    bytes: Vec<u8>,
    array: [u8; 20],
    large: u128,
    small: i128,
    maybe_large: Option<u128>,
    number: u64,
    negative: i64,
    character: char,
    text: String,
    yes: bool,
    cart: Option<Cart>,
    step: Step,
    unit: (),
    empty: Unit,
    by_number: BTreeMap<i32, Step>,
    by_character: BTreeMap<char, u8>,
    by_bool: BTreeMap<bool, ()>,
    address: Option<IpAddr>,
    #[serde(rename = "")]
    nameless: u8,
    #[serde(rename = "value")]
    value: u8,
}

fn wide() -> impl Strategy<Value = Wide> {
    let numbers = (any::<u128>(), any::<i128>(), any::<Option<u128>>(), any::<u64>(), any::<i64>());
    let texts = (any::<char>(), any::<String>(), any::<Vec<u8>>(), any::<[u8; 20]>());
    let maps = (
        collection::btree_map(any::<i32>(), step(), 0..4),
        collection::btree_map(any::<char>(), any::<u8>(), 0..4),
        collection::btree_map(any::<bool>(), Just(()), 0..3),
    );
    let cart = proptest::option::of((any::<Vec<(u32, String)>>(), any::<Option<String>>()));
    (numbers, texts, maps, cart, step(), any::<(bool, Option<IpAddr>, u8, u8)>()).prop_map(
        |(numbers, texts, maps, cart, step, (yes, address, nameless, value))| Wide {
            blob: Blob(texts.2.clone()),
            bytes: texts.2,
            array: texts.3,
            large: numbers.0,
            small: numbers.1,
            maybe_large: numbers.2,
            number: numbers.3,
            negative: numbers.4,
            character: texts.0,
            text: texts.1,
            yes,
            cart: cart.map(|(lines, voucher)| Cart { lines, voucher }),
            step,
            unit: (),
            empty: Unit,
            by_number: maps.0,
            by_character: maps.1,
            by_bool: maps.2,
            address,
            nameless,
            value,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let leaf = prop_oneof![
        Just(Step::Begun),
        any::<u64>().prop_map(Step::Paid),
        any::<(u8, String)>().prop_map(|(count, text)| Step::Sent(count, text)),
    ];
    leaf.prop_recursive(4, 4, 1, |inner| {
        (any::<String>(), proptest::option::of(inner))
            .prop_map(|(reason, next)| Step::Back { reason, next: next.map(Box::new) })
    })
}

fn any_fields() -> impl Strategy<Value = Fields> {
    let class = prop_oneof![Just(Class::Data), Just(Class::Flash), Just(Class::Whole)];
    let name = prop_oneof!["[a-d]", any::<String>()];
    let value = collection::vec(any::<u8>(), 0..300);
    collection::btree_map((class, name), value, 0..8).prop_map(|entries| {
        let mut changes = Changes::new();
        for ((class, name), value) in entries {
            changes.set(class, name, value.into());
        }
        changes.apply(&Fields::new())
    })
}

proptest! {
    // Their inputs are large.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_written_is_read_again(value in wide()) {
        let encoded = encode(&value).unwrap();
        prop_assert_eq!(encoded.len(), 21);
        prop_assert_eq!(decode::<Wide>(&reread(&encoded)).unwrap(), value.clone());
        let bytes = encode_value(&value).unwrap();
        prop_assert_eq!(decode_value::<Wide>(&bytes).unwrap(), value);
    }

    #[test]
    fn maps_are_read_again_whatever_their_keys(
        texts in any::<BTreeMap<String, u8>>(),
        numbers in any::<BTreeMap<i64, String>>(),
        characters in any::<BTreeMap<char, u8>>(),
        options in any::<BTreeMap<Option<bool>, u8>>(),
        pairs in any::<BTreeMap<(u8, String), u8>>(),
    ) {
        prop_assert_eq!(encode(&texts).unwrap().len(), texts.len().max(1));
        round_trip(texts);
        round_trip(numbers);
        round_trip(characters);
        round_trip(options);
        round_trip(pairs);
    }

    #[test]
    fn values_without_fields_are_read_again(
        step in step(),
        number in any::<i128>(),
        tuple in any::<(u8, String, Option<bool>)>(),
        list in any::<Vec<String>>(),
        maybe in any::<Option<BTreeMap<String, u8>>>(),
    ) {
        for fields in [
            round_trip(step),
            round_trip(number),
            round_trip(tuple),
            round_trip(list),
            round_trip(maybe),
        ] {
            prop_assert_eq!(names(&fields), [(Class::Whole, VALUE)]);
        }
    }

}

proptest! {
    #[test]
    fn bytes_are_fields_or_are_refused(bytes in any::<Vec<u8>>()) {
        if let Some(fields) = Fields::from_bytes(bytes.into()) {
            let _ = (decode::<Wide>(&fields), decode::<Step>(&fields), format!("{fields:?}"));
        }
    }

    #[test]
    fn any_values_can_be_asked_to_be_anything(
        values in collection::btree_map("[a-c]|value|step|cart", any::<Vec<u8>>(), 1..6),
    ) {
        let mut changes = Changes::new();
        for (name, value) in values {
            let class = if name == VALUE { Class::Whole } else { Class::Data };
            changes.set(class, name, value.into());
        }
        let fields = changes.apply(&Fields::new());
        let _ = (decode::<Wide>(&fields), decode::<Step>(&fields), decode::<()>(&fields));
        let _ = decode::<serde_json::Value>(&fields);
        let _ = decode::<HashMap<String, Step>>(&fields);
    }

    #[test]
    fn a_difference_makes_the_one_of_the_other(before in any_fields(), after in any_fields()) {
        let changes = Changes::diff(&before, &after);
        prop_assert_eq!(changes.apply(&before), after.clone());
        prop_assert_eq!(changes.is_empty(), before == after);
        prop_assert!(Changes::diff(&after, &after).is_empty());
        prop_assert_eq!(reread(&after), after);
    }

    #[test]
    fn changes_of_two_requests_are_both_there(
        base in any_fields(), ours in any_fields(), theirs in any_fields(),
    ) {
        let changes = Changes::diff(&base, &ours);
        let merged = changes.apply(&theirs);
        let mut overwritten = 0;
        for field in base.all().chain(ours.all()).chain(theirs.all()) {
            let of = |fields: &Fields| fields.get(field.class, field.name).map(<[u8]>::to_vec);
            let is = of(&merged);
            if of(&ours) == of(&base) {
                prop_assert_eq!(is, of(&theirs));
            } else {
                prop_assert_eq!(is, of(&ours));
            }
        }
        let mut all: Vec<_> = base.all().chain(ours.all()).chain(theirs.all()).collect();
        all.sort_by_key(|field| (field.class, field.name));
        all.dedup_by_key(|field| (field.class, field.name));
        for field in all {
            let of = |fields: &Fields| fields.get(field.class, field.name).map(<[u8]>::to_vec);
            let (base, ours, theirs) = (of(&base), of(&ours), of(&theirs));
            overwritten += usize::from(base != ours && base != theirs && ours != theirs);
        }
        prop_assert_eq!(changes.overwrites(&base, &theirs).len(), overwritten);
    }

    #[test]
    fn merged_changes_do_what_they_do_in_turn(
        one in any_fields(), two in any_fields(), three in any_fields(),
    ) {
        let mut changes = Changes::diff(&one, &two);
        changes.merge(Changes::diff(&two, &three));
        prop_assert_eq!(changes.apply(&one), three);
    }
}

#[test]
fn fields_are_found_by_class_and_name() {
    let mut changes = Changes::new();
    changes.set(Class::Flash, "a", Bytes::from_static(b"1"));
    changes.set(Class::Data, "b", Bytes::from_static(b"2"));
    changes.set(Class::Data, "a", Bytes::new());
    let fields = changes.apply(&Fields::new());
    assert_eq!(fields.len(), 3);
    assert_eq!(fields.get(Class::Data, "a"), Some(&b""[..]));
    assert_eq!(fields.get(Class::Flash, "a"), Some(&b"1"[..]));
    assert_eq!(fields.get(Class::Flash, "b"), None);
    assert_eq!(fields.iter(Class::Data).map(|(name, _)| name).collect::<String>(), "ab");
    assert_eq!(fields.iter(Class::Flash).collect::<Vec<_>>(), [("a", &b"1"[..])]);
    assert_eq!(fields.iter(Class::Whole).count(), 0);
    assert!(Fields::new().is_empty() && !fields.is_empty());
    assert_eq!(format!("{fields:?}"), r#"[(Data, "a"), (Data, "b"), (Flash, "a")]"#);
}

#[test]
fn fields_out_of_order_or_twice_are_refused() {
    let (a, b) = (fields(&[("a", 1)]), fields(&[("b", 1)]));
    let joined = |first: &Fields, second: &Fields| {
        Fields::from_bytes([&first.0[..], &second.0[..]].concat().into())
    };
    assert_eq!(joined(&a, &b), Some(fields(&[("a", 1), ("b", 1)])));
    assert_eq!(joined(&b, &a), None);
    assert_eq!(joined(&a, &a), None);
    for bytes in [&b"\x03\x00\x00"[..], b"\x00\x01", b"\x00\x01\xff\x00", b"\x00\x00\x81"] {
        assert_eq!(Fields::from_bytes(bytes.into()), None, "{bytes:?}");
    }
    let endless = [&[0][..], &[0xff; 20]].concat();
    assert_eq!(Fields::from_bytes(endless.into()), None);
}

#[test]
fn a_struct_has_a_field_for_each_of_its_own() {
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(Rest);
    impl Default for Wrapped {
        fn default() -> Self {
            Self(Rest { page: 1, others: BTreeMap::new() })
        }
    }

    let cart = round_trip(Cart { lines: vec![(1, "a".into())], voucher: None });
    assert_eq!(names(&cart), data(&["lines", "voucher"]));
    let others = BTreeMap::from([("zoom".into(), -1), ("a".into(), 2)]);
    let flat = round_trip(Wrapped(Rest { page: 7, others }));
    assert_eq!(names(&flat), data(&["a", "page", "zoom"]));
    round_trip(Unit);
    round_trip(());
}

#[test]
fn enums_that_look_like_structs_have_fields() {
    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        #[default]
        Guest,
        User {
            id: u64,
            name: Option<String>,
        },
    }
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(i64),
        Numbers(BTreeMap<i64, i64>),
        Struct { a: Vec<u8> },
    }
    impl Default for Untagged {
        fn default() -> Self {
            Self::Number(0)
        }
    }

    assert_eq!(names(&round_trip(Tagged::Guest)), data(&["kind"]));
    let user = round_trip(Tagged::User { id: 7, name: Some("Ada".into()) });
    assert_eq!(names(&user), data(&["id", "kind", "name"]));
    round_trip(Untagged::Number(-7));
    round_trip(Untagged::Numbers(BTreeMap::from([(1, 2)])));
    round_trip(Untagged::Struct { a: vec![1, 2] });
    round_trip(serde_json::json!({"a": [1, null, {"b": -1.5}], "": "text"}));
    round_trip(serde_json::json!([]));
    round_trip(serde_json::json!({}));
    round_trip(serde_json::json!(null));
}

#[test]
fn a_number_that_is_none_keeps_its_bits() {
    #[derive(Default, Serialize, Deserialize)]
    struct Floats {
        double: f64,
        single: f32,
    }

    let (double, single) = (f64::from_bits(0x7ff8_0000_dead_beef), f32::from_bits(0xffc0_1234));
    let read: Floats = decode(&encode(&Floats { double, single }).unwrap()).unwrap();
    assert_eq!(read.double.to_bits(), double.to_bits());
    assert_eq!(read.single.to_bits(), single.to_bits());
}

#[test]
fn keys_are_read_as_any_type_that_is_written_as_text() {
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    struct Sku(String);
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    enum Size {
        Small,
        Large,
    }

    let skus = round_trip(BTreeMap::from([(Sku("a".into()), 1), (Sku("b".into()), 2)]));
    assert_eq!(names(&skus), data(&["a", "b"]));
    round_trip(BTreeMap::from([(Size::Small, 1), (Size::Large, 2)]));
    round_trip(BTreeMap::from([(Some("a".to_owned()), 1)]));
    let mixed = round_trip(BTreeMap::from([(Some("a".to_owned()), 1), (None, 2)]));
    assert_eq!(names(&mixed), [(Class::Whole, MAP)]);
}

#[test]
fn what_is_missing_is_as_in_the_default_value() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Settings {
        page: u32,
        theme: String,
        #[serde(alias = "language")]
        tongue: String,
    }
    impl Default for Settings {
        fn default() -> Self {
            Self { page: 1, theme: "dark".into(), tongue: "en".into() }
        }
    }

    assert_eq!(decode::<Settings>(&Fields::new()).unwrap(), Settings::default());
    let expected = Settings { page: 7, ..Settings::default() };
    assert_eq!(decode::<Settings>(&fields(&[("page", 7)])).unwrap(), expected);
    assert_eq!(decode::<Settings>(&fields(&[("other", 7)])).unwrap(), Settings::default());
    let mut flash = Changes::new();
    flash.set(Class::Flash, "page", encode_value("Saved.").unwrap());
    let flash = flash.apply(&Fields::new());
    assert_eq!(decode::<Settings>(&flash).unwrap(), Settings::default());

    let mut renamed = Changes::new();
    renamed.set(Class::Data, "language", encode_value("fr").unwrap());
    let renamed = renamed.apply(&Fields::new());
    let expected = Settings { tongue: "fr".into(), ..Settings::default() };
    assert_eq!(decode::<Settings>(&renamed).unwrap(), expected);
    assert_eq!(decode::<Step>(&fields(&[("page", 7)])).unwrap(), Step::Begun);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sparse {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    theme: Option<String>,
    #[serde(default)]
    size: u8,
}

impl Default for Sparse {
    fn default() -> Self {
        Self { theme: Some("dark".into()), size: 10 }
    }
}

/// Loads, changes and stores, as a request does.
fn request<T>(record: &Fields, change: impl FnOnce(&mut T)) -> (T, Fields)
where
    T: Serialize + DeserializeOwned + Default,
{
    let mut value: T = decode(record).unwrap();
    let before = encode(&value).unwrap();
    change(&mut value);
    let after = encode(&value).unwrap();
    let changes = Changes::diff(&before, &after).with_missing(&after, record);
    (value, changes.apply(record))
}

#[test]
fn what_a_type_leaves_out_stays_out() {
    let new = Fields::new();
    let (_, record) = request(&new, |sparse: &mut Sparse| sparse.theme = None);
    assert_eq!(decode::<Sparse>(&record).unwrap(), Sparse { theme: None, size: 10 });
    let (_, record) = request(&new, |sparse: &mut Sparse| sparse.size = 7);
    let expected = Sparse { theme: Some("dark".into()), size: 7 };
    assert_eq!(decode::<Sparse>(&record).unwrap(), expected);

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Alone {
        #[serde(skip_serializing_if = "Option::is_none")]
        theme: Option<String>,
    }
    impl Default for Alone {
        fn default() -> Self {
            Self { theme: Some("dark".into()) }
        }
    }
    let (_, record) = request(&new, |alone: &mut Alone| alone.theme = None);
    assert_eq!(names(&record), [(Class::Whole, EMPTY)]);
    assert_eq!(decode::<Alone>(&record).unwrap(), Alone { theme: None });
    let (_, record) = request(&record, |alone: &mut Alone| alone.theme = Some("light".into()));
    assert_eq!(names(&record), data(&["theme"]));
}

#[test]
fn fields_of_other_types_survive() {
    let (_, record) = request(&Fields::new(), |cart: &mut Cart| cart.lines.push((1, "a".into())));
    let (_, record) = request(&record, |sparse: &mut Sparse| sparse.size = 1);
    let (_, record) = request(&record, |step: &mut Step| *step = Step::Paid(3));
    let (cart, record) = request(&record, |cart: &mut Cart| cart.voucher = Some("v".into()));
    assert_eq!(cart.lines.len(), 1);
    assert_eq!(decode::<Cart>(&record).unwrap(), cart);
    assert_eq!(decode::<Sparse>(&record).unwrap().size, 1);
    assert_eq!(decode::<Step>(&record).unwrap(), Step::Paid(3));
}

#[test]
fn what_was_supplied_never_replaces_what_somebody_has_written() {
    let (base, theirs) = (fields(&[("a", 1)]), fields(&[("a", 1), ("c", 9)]));
    let after = fields(&[("a", 1), ("b", 2), ("c", 3)]);
    let changes = Changes::diff(&fields(&[("a", 1), ("b", 0), ("c", 3)]), &after);
    let changes = changes.with_missing(&after, &base);
    assert_eq!(changes.apply(&base), after);
    assert_eq!(changes.apply(&theirs), fields(&[("a", 1), ("b", 2), ("c", 9)]));
    assert_eq!(changes.overwrites(&base, &theirs), [""; 0]);
    let alone = Changes::new().with_missing(&after, &base);
    assert!(alone.is_empty());
    assert_eq!(format!("{alone:?}"), r#"{(Data, "b"): "supply", (Data, "c"): "supply"}"#);
    // What is taken away in a later step is not supplied again.
    let mut steps = Changes::new();
    steps.unset(Class::Data, "b");
    steps.merge(alone);
    assert_eq!(steps.apply(&base), fields(&[("a", 1), ("c", 3)]));
}

#[test]
fn writes_of_the_same_field_are_reported() {
    type Table =
        [(&'static [(&'static str, i64)], &'static [(&'static str, i64)], &'static [&'static str]);
            8];
    let base = fields(&[("a", 1), ("b", 1)]);
    // Ours, theirs, what is overwritten.
    let table: Table = [
        (&[("a", 2), ("b", 1)], &[("a", 1), ("b", 2)], &[]),
        (&[("a", 2), ("b", 1)], &[("a", 3), ("b", 1)], &["a"]),
        (&[("a", 2), ("b", 1)], &[("a", 2), ("b", 1)], &[]),
        (&[("b", 1)], &[("a", 3), ("b", 1)], &["a"]),
        (&[("b", 1)], &[("b", 1)], &[]),
        (&[("a", 2), ("b", 1)], &[("b", 1)], &["a"]),
        (&[("a", 1), ("b", 1), ("c", 1)], &[("a", 1), ("b", 1), ("c", 2)], &["c"]),
        (&[("a", 2), ("b", 2)], &[], &["a", "b"]),
    ];
    for (ours, theirs, overwritten) in table {
        let changes = Changes::diff(&base, &fields(ours));
        assert_eq!(changes.overwrites(&base, &fields(theirs)), overwritten, "{ours:?} {theirs:?}");
    }
    let step = |step: Step| encode(&step).unwrap();
    let base = step(Step::Begun);
    let changes = Changes::diff(&base, &step(Step::Paid(1)));
    assert_eq!(changes.overwrites(&base, &step(Step::Paid(2))), ["the whole value"]);
}

#[test]
fn wrong_types_name_the_field_and_never_show_a_value() {
    let mut changes = Changes::new();
    changes.set(Class::Data, "lines", encode_value("secret").unwrap());
    let error = decode::<Cart>(&changes.apply(&Fields::new())).unwrap_err();
    assert_eq!(error.field(), Some("lines"));
    let expected = "the field \"lines\" of the session is not of the type that is read";
    assert_eq!(error.to_string(), expected);

    let whole = encode(&Step::Sent(1, "secret".into())).unwrap();
    let error = decode::<u8>(&whole).unwrap_err();
    assert_eq!(error.field(), None);
    assert_eq!(error.to_string(), "the session's data is not of the type that is read");
    assert_eq!(decode_value::<u8>(&encode_value("secret").unwrap()).unwrap_err(), error);

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        a: u8,
    }
    let error = decode::<Strict>(&fields(&[("a", 1), ("b", 2)])).unwrap_err();
    let expected = "the field \"b\" of the session is not known to the type that is read";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_cannot_be_written_is_named() {
    #[derive(Default)]
    struct Broken;
    impl Serialize for Broken {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("secret"))
        }
    }
    #[derive(Default, Serialize)]
    struct Holder {
        fine: u8,
        broken: Broken,
    }
    let error = encode(&Holder::default()).unwrap_err();
    assert_eq!(error.to_string(), "the field \"broken\" of the session cannot be serialized");
    let error = encode(&Broken).unwrap_err();
    assert_eq!(error.to_string(), "the session's data cannot be serialized");

    let twice = Rest { page: 1, others: BTreeMap::from([("page".into(), 2)]) };
    let error = encode(&twice).unwrap_err();
    assert_eq!(error.to_string(), "the field \"page\" of the session is there twice");
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
enum Chain {
    #[default]
    End,
    Link(Box<Chain>),
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Chained {
    chain: Chain,
}

fn chain(links: usize) -> Chain {
    (0..links).fold(Chain::End, |chain, _| Chain::Link(Box::new(chain)))
}

#[test]
fn what_nests_too_deeply_is_not_written() {
    round_trip(Chained { chain: chain(depth::MOST) });
    round_trip(chain(depth::MOST));
    let error = encode(&Chained { chain: chain(depth::MOST + 1) }).unwrap_err();
    assert_eq!(error.to_string(), "the field \"chain\" of the session is nested too deeply");
    assert_eq!(encode(&chain(depth::MOST + 1)).unwrap_err().field(), None);
    assert!(encode_value(&chain(depth::MOST + 1)).is_err());
}

#[test]
fn what_nests_too_deeply_overflows_no_stack() {
    // The variant `Link` as a map with one key, over and over.
    let links = [b"\x81\xa4Link".repeat(1 << 20), b"\xa3End".to_vec()].concat();
    let arrays = vec![0x91; 1 << 20];
    for deep in [links, arrays] {
        let mut changes = Changes::new();
        changes.set(Class::Data, "chain", deep.clone().into());
        changes.set(Class::Whole, VALUE, deep.clone().into());
        let fields = changes.apply(&Fields::new());
        assert_eq!(decode::<Chained>(&fields).unwrap_err().field(), Some("chain"));
        assert_eq!(decode::<serde_json::Value>(&fields).unwrap_err().field(), Some("chain"));
        assert_eq!(decode::<Sparse>(&fields).unwrap_err().field(), Some("chain"));
        assert!(decode::<Chain>(&fields).is_err());
        assert!(decode_value::<Chain>(&deep).is_err());
    }
}
