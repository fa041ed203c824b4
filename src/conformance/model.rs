use super::Harness;
/// x
pub async fn agrees_with_the_model<H: Harness>(_harness: &H, _cases: u32) {}
