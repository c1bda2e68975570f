import NetworkTypes
import RawFrames

/// Counts our frames of a node's device that are still there behind the chain that asks who sends, with the kernel's own counter.
struct FrameCounter {
  let node: Node
  let device: String

  init(_ node: Node, _ device: String) throws {
    (self.node, self.device) = (node, device)
    try nft(
      // The counter is one that outlives the chain, which goes with its device before Linux 6.16.
      "add table netdev test; add counter netdev test \(device); add chain netdev test \(device)"
        + " { type filter hook ingress device \(device) priority 10; }; "
        + "flush chain netdev test \(device); "
        + "add rule netdev test \(device) ether daddr \(Frame.destination) counter name \(device)")
  }

  var count: Int {
    get throws {
      let words = try nft("list counter netdev test \(device)").split(whereSeparator: \.isWhitespace)
      guard let index = words.firstIndex(of: "packets"), let count = Int(words[index + 1]) else { return -1 }
      return count
    }
  }

  @discardableResult
  private func nft(_ command: String) throws -> String {
    let outcome = try RunningPlugin.start(
      "/usr/sbin/nft", arguments: [command], environment: [:], input: "", in: node.network.namespace
    ).finish()
    guard outcome.exitCode == 0 else { throw ToolFailed(words: outcome.notes) }
    return outcome.output
  }
}

/// What nft said.
struct ToolFailed: Error {
  let words: String
}
