/// Bytes from the API server are not what its protocol says. The connection they came by is of no use any more; no object is
/// to blame.
package struct WireProblem: Error, Hashable, CustomStringConvertible {
  package var description: String
  init(_ description: String) { self.description = description }
}
