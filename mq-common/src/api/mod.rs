//! What a broker can be asked: requests, answers and the service traits. Batches never stand in here: they travel as
//! attachments, and the structures say how many bytes belong to whom.

pub mod admin;
pub mod fetch;
pub mod group;
pub mod produce;
pub mod transaction;
