#![allow(warnings)]
use crate::types::*;
use openraft::async_runtime::AsyncRuntime;
use openraft::storage::*;
use std::io;
pub struct GroupLog<RT>(std::marker::PhantomData<fn()->RT>);
impl<RT> Clone for GroupLog<RT>{fn clone(&self)->Self{todo!()}}
#[derive(Clone)]
pub struct NodeLog;
#[derive(Debug, thiserror::Error)] #[error("x")]
pub struct LogError;
impl From<LogError> for io::Error { fn from(e:LogError)->Self{io::Error::other(e)}}
impl NodeLog { pub fn group<RT:AsyncRuntime>(&self,g:GroupId)->GroupLog<RT>{todo!()} pub async fn remove_group<RT:AsyncRuntime>(&self,g:GroupId)->Result<(),LogError>{todo!()} }
impl<RT:AsyncRuntime> RaftLogReader<Types<RT>> for GroupLog<RT> {
  async fn try_get_log_entries<RB: std::ops::RangeBounds<u64> + Clone + std::fmt::Debug + Send>(&mut self, r: RB)->Result<Vec<Entry>, io::Error>{todo!()}
  async fn read_vote(&mut self)->Result<Option<Vote>, io::Error>{todo!()}
}
impl<RT:AsyncRuntime> RaftLogStorage<Types<RT>> for GroupLog<RT> {
  type LogReader=Self;
  async fn get_log_state(&mut self)->Result<LogState<Types<RT>>,io::Error>{todo!()}
  async fn get_log_reader(&mut self)->Self{todo!()}
  async fn save_vote(&mut self, v:&Vote)->Result<(),io::Error>{todo!()}
  async fn append<I>(&mut self, e:I, cb: IOFlushed<Types<RT>>)->Result<(),io::Error> where I:IntoIterator<Item=Entry>+Send, I::IntoIter: Send {todo!()}
  async fn truncate_after(&mut self, l:Option<LogId>)->Result<(),io::Error>{todo!()}
  async fn purge(&mut self, l:LogId)->Result<(),io::Error>{todo!()}
}
