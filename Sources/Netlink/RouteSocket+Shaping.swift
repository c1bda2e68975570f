import CLinux
import Glibc

/// A rate that packets are held to (tc-tbf(8)).
public struct TokenBucket: Sendable, Hashable {
  /// Bytes a second.
  public var rate: UInt64
  /// Bytes that may go at once after a silence.
  public var burst: UInt32
  /// Bytes that may wait; what comes beyond is dropped.
  public var limit: UInt32

  public init(rate: UInt64, burst: UInt32, limit: UInt32) {
    self.rate = rate
    self.burst = burst
    self.limit = limit
  }

  /// With as much room as holds packets back for that long.
  public init(rate: UInt64, burst: UInt32, latencyMilliseconds: UInt64) {
    let waiting = rate.multipliedReportingOverflow(by: latencyMilliseconds)
    let room = waiting.overflow ? .max : waiting.partialValue / 1000
    self.init(
      rate: rate, burst: burst, limit: UInt32(clamping: room.addingReportingOverflow(UInt64(burst)).partialValue))
  }
}

extension RouteSocket {
  private static let classifierHandle: UInt32 = 0xffff_0000
  /// TC_H_MIN_INGRESS of it.
  private static let ingressParent: UInt32 = 0xffff_fff2
  /// Behind whatever judges packets there.
  private static let lastPriority: UInt32 = 0xc000

  /// Holds what leaves a link to a rate.
  public func setTokenBucket(_ bucket: TokenBucket, interfaceIndex: Int) throws(NetlinkError) {
    var message = Self.trafficControl(RTM_NEWQDISC, interfaceIndex, parent: TC_H_ROOT, NLM_F_CREATE | NLM_F_REPLACE)
    message.attribute(TCA_KIND, string: "tbf")
    message.nest(TCA_OPTIONS) { message in
      var options = tc_tbf_qopt()
      // Said, so that the kernel does not look for a table of times that tc(8) used to make.
      options.rate.linklayer = UInt8(TC_LINKLAYER_ETHERNET.rawValue)
      options.rate.rate = UInt32(clamping: bucket.rate)
      options.limit = bucket.limit
      message.attribute(TCA_TBF_PARMS, withUnsafeBytes(of: options) { Array($0) })
      if bucket.rate > UInt64(UInt32.max) { message.attribute(TCA_TBF_RATE64, number: bucket.rate) }
      message.attribute(TCA_TBF_BURST, number: bucket.burst)
    }
    try change(message, "set rate", "#\(interfaceIndex)")
  }

  /// Sends everything that comes in by a link out by another one instead, after all other filters of that link. The link has to
  /// have no other `clsact` but one that holds BPF programs: before Linux 6.6 the eBPF engine's share the discipline.
  public func redirectIngress(of interfaceIndex: Int, to other: Int) throws(NetlinkError) {
    let object = "#\(interfaceIndex) -> #\(other)"
    var queue = Self.trafficControl(
      RTM_NEWQDISC, interfaceIndex, parent: TC_H_INGRESS, NLM_F_CREATE | NLM_F_EXCL, handle: Self.classifierHandle)
    queue.attribute(TCA_KIND, string: "clsact")
    try tolerating(EEXIST) { () throws(NetlinkError) in try change(queue, "add clsact", object) }

    let everything: UInt16 = 3  // ETH_P_ALL
    var filter = Self.trafficControl(
      RTM_NEWTFILTER, interfaceIndex, parent: Self.ingressParent, NLM_F_CREATE | NLM_F_EXCL,
      info: Self.lastPriority << 16 | UInt32(everything.bigEndian))
    filter.attribute(TCA_KIND, string: "u32")
    filter.nest(TCA_OPTIONS) { message in
      var selector = tc_u32_sel()
      selector.flags = UInt8(TC_U32_TERMINAL)
      selector.nkeys = 1
      // A key whose mask is empty: everything.
      let key = tc_u32_key()
      message.attribute(
        TCA_U32_SEL, withUnsafeBytes(of: selector) { Array($0) } + withUnsafeBytes(of: key) { Array($0) })
      message.nest(TCA_U32_ACT) { message in
        // The first of its actions.
        message.nest(1) { message in
          message.attribute(TCA_ACT_KIND, string: "mirred")
          message.nest(TCA_ACT_OPTIONS) { message in
            var redirect = tc_mirred()
            redirect.action = CInt(TC_ACT_STOLEN)
            redirect.eaction = CInt(TCA_EGRESS_REDIR)
            redirect.ifindex = UInt32(clamping: other)
            message.attribute(TCA_MIRRED_PARMS, withUnsafeBytes(of: redirect) { Array($0) })
          }
        }
      }
    }
    try change(filter, "redirect", object)
  }

  private static func trafficControl(
    _ type: some BinaryInteger, _ interfaceIndex: Int, parent: UInt32, _ flags: CInt, handle: UInt32 = 0,
    info: UInt32 = 0
  ) -> NetlinkMessageBuilder {
    var header = tcmsg()
    header.tcm_ifindex = CInt(clamping: interfaceIndex)
    header.tcm_parent = parent
    header.tcm_handle = handle
    header.tcm_info = info
    var message = NetlinkMessageBuilder(type: type, flags: flags)
    message.append(header)
    return message
  }
}
