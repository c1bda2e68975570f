import LocalAPI
import Netlink

/// How fast a pod may be: what it gets (`ingress`) waits at the node's end of its pair, what it sends (`egress`) at a device of its
/// own that everything from that end is led through.
struct BandwidthLimit {
  var ingress: TokenBucket?
  var egress: TokenBucket?

  func apply(to name: AttachmentName, mtu: Int, _ node: RouteSocket) throws(NetlinkError) {
    guard let host = try node.link(named: name.hostInterface) else { return }
    // A packet that is longer than the burst would never go.
    let longest = UInt32(clamping: mtu + 18)
    func bucket(_ wanted: TokenBucket) -> TokenBucket {
      var bucket = wanted
      bucket.burst = max(bucket.burst, longest)
      bucket.limit = max(bucket.limit, bucket.burst)
      return bucket
    }
    if let ingress { try node.setTokenBucket(bucket(ingress), interfaceIndex: host.index) }
    guard let egress else { return }
    // Of an earlier attempt.
    try node.deleteLink(named: name.shaperInterface)
    try node.createIntermediateBlock(name: name.shaperInterface, mtu: mtu)
    guard let shaper = try node.link(named: name.shaperInterface) else { return }
    try node.setLink(index: shaper.index, LinkChanges(isUp: true))
    try node.setTokenBucket(bucket(egress), interfaceIndex: shaper.index)
    try node.redirectIngress(of: host.index, to: shaper.index)
  }

  /// What is missing of it: without its device a pod cannot send.
  func fault(of name: AttachmentName, _ node: RouteSocket) throws(NetlinkError) -> String? {
    guard egress != nil else { return nil }
    let shaper = try node.link(named: name.shaperInterface)
    return shaper?.isUp == true ? nil : "the node has no interface \(name.shaperInterface) that is up"
  }
}
